"""The smallest model that meets a limit: looked for when a search is over, measured and kept like any other answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.ledger import Ledger
from ffprune_env.limits.limit import Limit
from ffprune_env.limits.smallest import LimitMissedError, Smallest, smallest_model
from ffprune_env.limits.told import limit_content, limit_lines, limit_table
from ffprune_env.limits.trial_log import TrialLog
from ffprune_env.lm.identity import identity_of_texts, identity_of_versions
from ffprune_env.run.answer_report import AnswerReport
from ffprune_env.run.folder import RunFolder, part_of
from ffprune_env.search.finalists import Answer
from ffprune_env.search.saved_policy import Policy


@dataclass(frozen=True)
class LimitedModel:
    """What came of a limit at the end of a search.

    Attributes:
        found: the smallest model; None where none meets the limit.
        report: of it; None where there is none.
        missed: one line that says that none meets it; None where one does.
    """

    found: Smallest | None
    report: AnswerReport | None
    missed: str | None = None

    @classmethod
    def of(
        cls,
        run: RunFolder,
        evaluator: LMEvaluator,
        policy: Policy,
        limit: Limit,
        windows: torch.Tensor,
        test_windows: torch.Tensor,
        about: Mapping[str, Any],
        ledger: Ledger,
    ) -> LimitedModel:
        """Looks for it, measures it on test text and leaves ``best.json`` and its plot; no model is written yet.

        Args:
            run: the folder of the run; what is found goes to a folder inside.
            evaluator: the model, its search text and its calibration.
            policy: what the search has learnt.
            limit: what may be lost.
            windows: int64 [n, seq_len], to check the limit on; nobody else sees them.
            test_windows: int64 [n, seq_len].
            about: what ``best.json`` tells beside the figures.
            ledger: what the search cost, to which the models are added that are made here.
        """
        try:
            with ledger.part("limit", evaluator.devices):
                found = smallest_model(policy, evaluator, limit, windows, trial_log(run, windows))
        except LimitMissedError as error:
            return cls(None, None, str(error))
        at, allocation = found.answer.sparsity, found.answer.allocation
        folder = RunFolder(limit_part_of(run.path, at, policy.targets))
        (folder.path / "plots").mkdir(parents=True, exist_ok=True)
        answer, told = Answer("the policy", policy.scores(at), allocation), {**about, "limit": limit_content(found)}
        report = AnswerReport(folder, evaluator, test_windows, at, answer, told, ledger.parts)
        report.measure_chosen()
        report.draw_retention()
        return cls(found, report)

    @property
    def failure(self) -> str | None:
        """One line that says why there is no model, or what is wrong with it; None if nothing is."""
        return self.missed if self.report is None else self.report.failure

    def tables(self) -> list[Table]:
        """What was tried, and what the answer is worth."""
        if self.found is None or self.report is None:
            return []
        return [limit_table(self.found), self.report.table()]

    def lines(self) -> list[str]:
        """What a person reads below the tables."""
        if self.found is None or self.report is None:
            return []
        return [*limit_lines(self.found), f"files in {self.report.run.path}", *self.report.next_steps()]


def trial_log(run: RunFolder, windows: torch.Tensor) -> TrialLog:
    """The models that were measured for a limit of a run before, as far as their figures would be the same now.

    Args:
        run: its folder.
        windows: int64 [n, seq_len], to check the limit on.

    Raises:
        ValueError: the run does not say what it measured.
        OSError: the file cannot be read.
    """
    now = {**run.identity(), **identity_of_versions(), **identity_of_texts({"limit": windows})}
    return TrialLog(run.path / "limit.jsonl", now)


def limit_part_of(run: Path, sparsity: float, searched: Sequence[float]) -> Path:
    """As for any σ of a run, but beside what the run itself chose: ``s7.31``, or ``s20-limit`` where it searched 0.2.

    Args:
        run: its folder.
        sparsity: σ that was found.
        searched: the sparsities that the run measured.
    """
    part = part_of(run, sparsity)
    return part.with_name(f"{part.name}-limit") if sparsity in searched else part
