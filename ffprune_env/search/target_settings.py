"""TargetSettings: at which sparsities something is to be found, and how long it may be searched for."""

from __future__ import annotations

from dataclasses import dataclass

from ffprune_env.budget.sparsity_range import Sparsity, SparsityRange


@dataclass(frozen=True)
class SparsitySettings:
    """What is to be found; the field is a flag, with its help."""

    sparsity: Sparsity = 0.2
    """fraction of the prunable parameters to remove; of several, one policy is trained over all, in turns, and
    evaluate/compare.py compares the methods at each; of a range, as in 0.1:0.5, one policy for every sparsity in it"""

    @property
    def targets(self) -> tuple[float, ...]:
        """The sparsities asked for, each once, ascending; of a range some that are spread evenly over it."""
        if isinstance(self.sparsity, SparsityRange):
            return self.sparsity.spread()
        return tuple(sorted(set(self.sparsity))) if isinstance(self.sparsity, tuple) else (self.sparsity,)

    @property
    def target(self) -> float:
        """The sparsity asked for, the highest if there are several."""
        return self.targets[-1]


@dataclass(frozen=True)
class EvaluationsSettings:
    """How long may be searched; the field is a flag, with its help."""

    evaluations: int | None = None
    """candidates that a search measures, rounded up to whole rollouts, or 0 to take the start as it is; None takes 96
    for every sparsity, and none where damage curves are the start, to which a search adds nothing (docs/search.md).
    In a comparison, the budget of every search, in measurements on all --search-windows: who measures on fewer makes
    more"""

    @property
    def evaluations_each(self) -> int:
        """Of every search, where all are to have as many; ValueError if it is not said how many."""
        if self.evaluations is None:
            raise ValueError("--evaluations takes a number here, got None")
        return self.evaluations


@dataclass(frozen=True)
class TargetSettings(EvaluationsSettings, SparsitySettings):
    """What is to be found, and how long it may be searched for; the fields are flags."""
