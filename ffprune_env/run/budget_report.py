"""What a run says of the budget that it was given: asked, predicted, and as it is on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.budget import TIMES, Budget, told
from ffprune_env.budget.measure import Measure
from ffprune_env.budget.stored_measure import measure_content, measure_from_content
from ffprune_env.export.gguf.kinds import GgufType
from ffprune_env.export.measures import measure_of
from ffprune_env.run.stored_amounts import stored_amount
from ffprune_env.serving.latency import UnitTimes, served_time, unit_times
from ffprune_env.serving.unit_times import Server, What, parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import PrunableModel

#: What a run that begins leaves of this: who goes on with it counts no more.
COUNTED = "budget.json"
# What two timings of one model may be apart.
_TIMING = 0.05


@dataclass(frozen=True)
class BudgetReport:
    """A budget, and what it counts of the model of this run.

    Attributes:
        budget: as it was asked for.
        measure: of the dense model.
        timed: nanoseconds that a folder takes, where time is what counts.
        seconds: that the dense model takes, by what was timed, where time is what counts.
    """

    budget: Budget
    measure: Measure
    timed: Callable[[Path], int] | None = None
    seconds: Mapping[What, float] | None = None

    @property
    def bound(self) -> int:
        """What may stay."""
        return self.budget.bound(self.measure.dense)

    def counted(self) -> dict[str, Any]:
        """What ``budget.json`` holds: what the dense model and its units cost when the run began."""
        return {**measure_content(self.measure), "seconds": self.seconds}

    def asked(self) -> str:
        """What is asked for, for a person."""
        dense, bound = (told(amount, self.measure.name) for amount in (self.measure.dense, self.bound))
        return f"budget {self.budget}: at most {bound} of {dense} may stay"

    def content(self, kept: IntArray, written: int | None) -> dict[str, Any]:
        """What ``best.json`` holds of it.

        Args:
            kept: int [N], groups kept per unit.
            written: what the model on disk has; None of one that was not written.
        """
        return {
            "asked": str(self.budget),
            "measure": self.measure.name,
            "at_most": self.bound,
            "dense": self.measure.dense,
            "predicted": self.measure.of(kept),
            "written": written,
        }

    def line(self, kept: IntArray, written: int | None) -> str:
        """The same for a person."""
        amounts = {"dense": self.measure.dense, "at most": self.bound, "predicted": self.measure.of(kept)}
        if written is not None:
            amounts["written"] = written
        name = self.measure.name
        return f"budget {self.budget}: " + ", ".join(f"{word} {told(x, name)}" for word, x in amounts.items())

    def failure(self, written: int | None) -> str | None:
        """One line where the model on disk is more than was asked for; None if it is not."""
        if written is None or written <= self.bound * (1 if self.timed is None else 1 + _TIMING):
            return None
        name = self.measure.name
        return f"--budget {self.budget} is not met: what was written has {told(written, name)} ({written:,})"

    def written(self, folder: Path, gguf: Path) -> int | None:
        """What a model on disk has.

        Args:
            folder: that transformers loads.
            gguf: the file for llama.cpp, whose size counts if it is there.
        """
        return stored_amount(self.measure.name, folder, gguf) if self.timed is None else self.timed(folder)


def count_budget(
    budget: Budget,
    prunable: PrunableModel,
    tokenizer: PreTrainedTokenizerBase,
    gguf: GgufType | None,
    server: Server,
    before: Mapping[str, Any] | None = None,
) -> BudgetReport:
    """Finds out what a budget counts of a model, and lets its units cost that.

    A search is about what units cost when it began: times that are taken again are others, and σ with them.

    Args:
        budget: as it was asked for.
        prunable: the ranked model, dense now.
        tokenizer: the model's.
        gguf: the type of the GGUF file that will be written; None: of none.
        server: where time is measured.
        before: what a run that goes on has counted, as :meth:`BudgetReport.counted` gives it; None: nothing yet.

    Raises:
        ValueError: it is not known beforehand, the model cannot be written for the server, or what was counted cannot
            be read.
    """
    name = budget.measure
    seconds: Mapping[What, float] | None = None
    if before is not None:
        measure, seconds = _counted_before(before, budget, prunable)
    elif name in TIMES:
        times = unit_times(prunable, tokenizer, server)
        measure, seconds = times.measure(prunable, name), times.dense
    else:
        measure = measure_of(prunable, name, tokenizer, gguf)
    prunable.count(measure.units)
    if seconds is None:
        return BudgetReport(budget, measure)
    timed = partial(served_time, prunable, tokenizer, server, UnitTimes(seconds, ()), name)
    return BudgetReport(budget, measure, timed, seconds)


def _counted_before(
    content: Mapping[str, Any], budget: Budget, prunable: PrunableModel
) -> tuple[Measure, Mapping[What, float] | None]:
    """What a run counted when it began, and the seconds of the dense model then, where time is what counts."""
    name = budget.measure
    try:
        measure = measure_from_content(content, name, prunable.units)
        if name not in TIMES:
            return measure, None
        return measure, {what: float(content["seconds"][what]) for what in parts_of(name)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{COUNTED} of this run does not say what --budget {budget} counts: {error}; start a new run, without "
            f"--resume"
        ) from error
