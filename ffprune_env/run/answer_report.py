"""What is reported of one answer: a sparsity, what to keep there, and the model that this makes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ffprune_env.budget.allocation import Allocation, whole
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.ledger import Part
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.export.gguf.kinds import GgufType
from ffprune_env.export.model_card import CardFacts
from ffprune_env.lm.cost import Cost
from ffprune_env.lm.phases import phase
from ffprune_env.run.budget_report import BudgetReport
from ffprune_env.run.config import CONFIG
from ffprune_env.run.cost_report import cost_content
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.measuring import baselines, measure_policies
from ffprune_env.run.next_steps import next_steps, serving
from ffprune_env.run.plots import retention_plot
from ffprune_env.run.recovery_files import FOLDER, forget_recovery
from ffprune_env.run.results import Measured, PolicyResult, best_policy, label
from ffprune_env.run.results_table import results_table
from ffprune_env.run.saved_model import write_and_measure
from ffprune_env.run.told_before import ToldBefore
from ffprune_env.search.finalists import Answer

logger = logging.getLogger(__name__)


class AnswerReport:
    """Measures policies and leaves files, one step after another; every step is kept as soon as it is made.

    Args:
        run: the folder of this sparsity.
        evaluator: the model, its search text and its calibration.
        test_windows: int64 [n, seq_len].
        target: the sparsity that was asked for.
        answer: what to keep.
        about: what ``best.json`` tells beside the figures, such as the names of the texts.
        spent: what the parts that came to the answer cost.
        dense: the dense model, if it was measured already, such as for another sparsity of the same run.
        budget: what was asked for, where that was no sparsity.
        told: what is known of the same answer, which was measured before: it stays, and is not measured again.

    Attributes:
        failure: one line that says what is wrong with the model that was written; None if nothing is.
    """

    def __init__(
        self,
        run: RunFolder,
        evaluator: LMEvaluator,
        test_windows: torch.Tensor,
        target: float,
        answer: Answer,
        about: Mapping[str, Any],
        spent: Mapping[Part, Cost],
        dense: PolicyResult | None = None,
        budget: BudgetReport | None = None,
        told: ToldBefore | None = None,
    ) -> None:
        self.run, self.evaluator, self.test_windows = run, evaluator, test_windows
        self.target, self.answer, self.about, self._spent = target, answer, about, spent
        self.budget = budget
        self._has: int | None = None  # of what the budget counts, the model on disk
        self.policies: dict[str, Allocation] = {}
        self._told = told or ToldBefore()
        known = {} if dense is None else {"dense": dense}
        plain, calibrated = known | dict(self._told.plain), dict(self._told.calibrated)
        self.results = Measured(plain, calibrated, evaluator.calibration_asked)
        self.failure: str | None = None
        self._before = _told_of_models(run)

    def measure_chosen(self) -> None:
        """Measures the dense model, if it was not, and the policy that was chosen, cut and calibrated."""
        self._measure({"dense": whole(self.evaluator.units), "chosen": self.answer.allocation})

    @property
    def dense(self) -> PolicyResult:
        """The dense model; measured with the policy that was chosen."""
        return self.results.plain["dense"]

    @property
    def calibrating(self) -> Cost:
        """What it cost to re-fit the policy that was chosen; nothing of what Eqs. 6-7 took for all at once."""
        return self.results.calibrating.get("chosen", Cost())

    @property
    def cost(self) -> dict[Part, Cost]:
        """What the answer cost, the re-fitting of it included; not what is measured only to be reported."""
        spent = dict(self._spent)
        return spent | {"calibration": spent.get("calibration", Cost()) + self.calibrating}

    def write_model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        facts: CardFacts,
        on_cpu: bool = False,
        gguf: GgufType | None = None,
    ) -> None:
        """Writes the chosen model to ``model/``, and measures what a user reads back from there.

        A ``model.gguf`` that was there before goes, and what a recovery made of another model in ``model/``.

        Args:
            tokenizer: goes beside it.
            facts: for the model card, as far as they are no figures of this report.
            on_cpu: read it back there.
            gguf: write it to ``model.gguf`` too, with matrices of this type.
        """
        chosen = self.results.final["chosen"]
        facts = replace(
            facts,
            # The σ of units with costs of their own is a fraction of what these count.
            target_sparsity=self.target if all(unit.costs is None for unit in self.evaluator.units) else None,
            budget=None if self.budget is None else str(self.budget.budget),
            dense_ppl=self.dense.test_ppl,
            pruned_ppl=chosen.test_ppl,
            calibration_asked=self.results.asked,
        )
        folder, batch_size = self.run.path / "model", self.evaluator.batch_size
        saved = write_and_measure(
            self.evaluator, chosen, self.test_windows, folder, tokenizer, facts, batch_size, on_cpu, self._forget
        )
        if saved.result is not None:
            self.gguf.unlink(missing_ok=True)
        self.results, self.failure = replace(self.results, saved=saved.result), saved.failure
        self._keep()
        if gguf is not None and self.failure is None:
            self._write_gguf(folder, gguf)
        if self.budget is not None and self.failure is None:
            self._has = self.budget.written(folder, self.gguf)
            self.failure = self.budget.failure(self._has)
            self._keep()

    @property
    def gguf(self) -> Path:
        """The file for llama.cpp, where one was asked for."""
        return self.run.path / "model.gguf"

    def _write_gguf(self, folder: Path, kind: GgufType) -> None:
        try:
            with phase("writing", f"{self.gguf}, {kind}"):
                written = export_gguf(folder, self.gguf, kind)
        except (ValueError, OSError, RuntimeError) as error:  # a full disk, or no memory for the model once more
            self.failure = f"{folder} is written, and {self.gguf.name} could not be: {error}"
            return
        for line in written.told(kind):
            logger.info("%s: %s", self.gguf, line)

    def measure_baselines(self) -> None:
        """Measures what the chosen policy is compared with, as far as that reaches the sparsity."""
        self._measure(baselines(self.target, self.evaluator.units))

    @property
    def pruned(self) -> dict[str, Allocation]:
        """What was measured beside the dense model, by the name that people call it."""
        return {label(name): policy for name, policy in self.policies.items() if name != "dense"}

    def draw_retention(self) -> None:
        """Leaves the plot of what every layer keeps."""
        rates = {name: policy.rates for name, policy in self.pruned.items()}
        self.run.save_plot("retention", retention_plot(self.evaluator.units, rates))

    def table(self) -> Table:
        """The table a person reads at the end."""
        return results_table(self.results, self.evaluator.texts | {"test": self.test_windows}, self.evaluator.bos)

    def met(self) -> list[str]:
        """What became of the budget, in a line; none where a sparsity was asked for."""
        return [] if self.budget is None else [self.budget.line(self.answer.allocation.kept, self._has)]

    def next_steps(self) -> list[str]:
        """What can be done with the model, as commands and a line of Python; nothing if none was written."""
        if self.results.saved is None or self.failure is not None:
            return []
        path = self.run.path
        served = serving(self.evaluator.prunable.model, path / "model", self.gguf, self.gguf.is_file())
        return next_steps(path, self.about, served, any((x / CONFIG).is_file() for x in (path, path.parent)))

    def _measure(self, policies: Mapping[str, Allocation]) -> None:
        self.policies |= policies
        batch_size = self.evaluator.batch_size
        self.results = measure_policies(self.evaluator, policies, self.test_windows, batch_size, self.results)
        self._keep()

    def _forget(self) -> None:
        """Another model comes to ``model/``: nothing is told any more of the one before, nor of what became of it."""
        self._before = {}
        self._keep()
        self.gguf.unlink(missing_ok=True)
        forget_recovery(self.run)

    def _keep(self) -> None:
        """Writes ``best.json``; of models on disk that nobody has written anew it tells what it did."""
        texts = {**self.evaluator.texts, "test": self.test_windows}
        about = {
            "target_sparsity": self.target,
            **self._told.search,
            **self.about,
            "seq_len": self.evaluator.windows.shape[1],
            "test_seq_len": self.test_windows.shape[1],
            "bos": self.evaluator.bos,
            "windows": {purpose: len(windows) for purpose, windows in texts.items()},
            "cost": cost_content(self.cost) if self._told.cost is None else self._told.cost,
        }
        if self.budget is not None:
            about["budget"] = self.budget.content(self.answer.allocation.kept, self._has)
        policies = best_policy(self.evaluator, self.results, self.answer.scores, self.answer.allocation)
        self.run.write_json("best.json", about | self._before | policies)


def _told_of_models(run: RunFolder) -> dict[str, Any]:
    """What ``best.json`` tells of models that are on disk now, such as of a run that is made again; nothing if damaged.

    Args:
        run: the folder of a sparsity.
    """
    try:
        best = run.read_json("best.json") or {}
    except ValueError:
        return {}
    folders = {"saved": "model", "recovered": FOLDER}
    return {name: best[name] for name, folder in folders.items() if name in best and (run.path / folder).is_dir()}
