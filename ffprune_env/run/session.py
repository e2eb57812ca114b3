"""A process at work on a run: one that begins, or one that goes on and must find everything as it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.lm.identity import Identity, identity_of_settings, identity_of_versions
from ffprune_env.pruning.stored_order import order_as_json
from ffprune_env.run.budget_report import COUNTED
from ffprune_env.run.cost_log import CostLog
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.provenance import machine_facts
from ffprune_env.run.sample_log import SampleLog
from ffprune_env.run.start_file import read_start, start_content
from ffprune_env.search.saved_policy import copy_policy
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.names import NAMES
from ffprune_env.search.starts.other_run import OtherRun
from ffprune_env.search.starts.parse import parse_start
from ffprune_env.search.starts.start import Start, StartScores
from ffprune_env.search.workers import require_same_rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class RunSession:
    """What one process knows of its run.

    Of a run that goes on everything is compared, as soon as it is known, with what the run was begun with: nobody
    waits for what is refused in the end.

    Args:
        folder: this process's own.
        settings: of the run, by name; plain values.
        goes_on: whether another process has begun it.

    Attributes:
        folder, settings, goes_on: as given.
        identity: what the figures of the run depend on, as far as it is known.
        log: its samples.
        costs: what it has cost.

    Raises:
        ChangedError: other settings, or another version, than the run was begun with.
        ValueError: its samples cannot be read.
    """

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any], goes_on: bool = False) -> None:
        self.folder, self.settings, self.goes_on = folder, settings, goes_on
        self.identity: dict[str, str] = {}
        # A policy to start from is copied, so that of it no more than that there is one counts.
        asked = settings if settings["init"] in NAMES else {**settings, "init": "a run"}
        self.know({**identity_of_versions(), **identity_of_settings(asked)})
        self.log = SampleLog(folder.samples)
        self.costs = CostLog(folder.costs)

    @classmethod
    def reopened(cls, path: str, settings: Mapping[str, Any]) -> RunSession:
        """Goes on with a run that was cut off.

        Args:
            path: its folder.
            settings: of the run; ``workers`` may be others.

        Raises:
            ValueError: there is no such run, it was begun with something else, or another process works on it.
        """
        folder = RunFolder(path)
        folder.reopen()
        try:
            require_same_rollouts(folder.read_config().get("workers", 0), settings["workers"])
            return cls(folder, settings, goes_on=True)
        except BaseException:
            folder.give_up()
            raise

    def know(self, more: Identity, texts: Mapping[str, str] | None = None) -> None:
        """Adds to the identity; ChangedError, in one line, where a run that goes on was begun with something else.

        Args:
            more: a part of it.
            texts: names of the texts by use, for the message.
        """
        self.identity |= more
        if self.goes_on:
            self.folder.require_same(more, self.settings["model"], texts)

    def start(self, settings: SearchSettings) -> Start:
        """Where the policy starts: another run may have changed since this one began, so that a copy of it counts.

        Args:
            settings: of the search.

        Raises:
            ValueError: there is no such start.
        """
        copied = self._copied_start
        return parse_start(replace(settings, init=str(copied)) if copied.is_dir() else settings)

    def order(self, model: PreTrainedModel) -> list[IntArray] | None:
        """The order of heads and channels that the run measured before; None if it begins."""
        return self.folder.require_order(model) if self.goes_on else None

    def counted(self) -> dict[str, Any] | None:
        """What the run counted for its budget when it began; None if it begins, or was cut off before it wrote that.

        Raises:
            ValueError: the file is damaged.
        """
        return self.folder.read_json(COUNTED) if self.goes_on else None

    def scores(self, targets: Sequence[float], n_units: int) -> StartScores | None:
        """The scores that the run started from; None if it begins, or was cut off before it had any."""
        return read_start(self.folder.starts, targets, n_units) if self.goes_on else None

    def begin(
        self, evaluator: LMEvaluator, start: Start, scores: StartScores, counted: Mapping[str, Any] | None = None
    ) -> None:
        """Writes down what the run is; or reminds the evaluator of what it measured, and says what is different now.

        Args:
            evaluator: the ranked model.
            start: where the policy starts.
            scores: what it gave.
            counted: what the budget counts, if there is one.
        """
        folder, facts = self.folder, machine_facts(evaluator.prunable.model)
        if self.goes_on:
            folder.warn_of_changes(facts)
            logger.info("%d evaluations were made before", len(self.log.recorded))
        else:
            order = order_as_json(evaluator.prunable)
            folder.begin(self.settings, self.identity, order, seed=self.settings["seed"], **facts)
            if isinstance(start, OtherRun):
                copy_policy(self.settings["init"], self._copied_start)
            self.costs.save(0)
        if counted is not None:  # before the start, which is of the sparsity that it comes to
            folder.write_json(COUNTED, counted)
        folder.write_json(folder.starts.name, start_content(scores))
        self.log.remind(evaluator)

    @property
    def _copied_start(self) -> Path:
        return self.folder.path / "init"
