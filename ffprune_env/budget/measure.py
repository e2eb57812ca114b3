"""Measure: what a budget counts of one model, and which sparsity meets it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from ffprune_env.budget.allocation import allocation_of, reachable_sparsities
from ffprune_env.budget.budget import Budget, MeasureName, told
from ffprune_env.budget.units import PruneUnit


@dataclass(frozen=True)
class Measure:
    """What is counted of a model.

    Attributes:
        name: of what is counted.
        units: the N units, with costs where their parameters do not say what counts.
        dense: what the dense model has of it in all.
        per_weight: how much of it goes with 1 of the units' weights: bytes of a parameter, or 1.
    """

    name: MeasureName
    units: tuple[PruneUnit, ...]
    dense: int
    per_weight: int = 1

    @property
    def total(self) -> int:
        """What σ is a fraction of."""
        return sum(unit.weight for unit in self.units)

    def of(self, kept: npt.ArrayLike) -> int:
        """What a pruned model has of it.

        Args:
            kept: int [N], groups kept per unit.
        """
        return self.dense - self.per_weight * round(allocation_of(kept, self.units).sparsity * self.total)

    def sparsity(self, budget: Budget, a_min: float = 0.2, a_max: float = 1.0) -> float:
        """The least sparsity that meets a budget: what is removed, as a fraction of what the units weigh.

        Args:
            budget: in this measure.
            a_min: lowest retention rate of a unit.
            a_max: highest retention rate.

        Raises:
            ValueError: the dense model meets it, or whole groups within the bounds cannot; the message says what can
                be met.
        """
        bound, total = budget.bound(self.dense), self.total
        if bound >= self.dense:
            raise ValueError(f"--budget {budget}: the dense model has {told(self.dense, self.name)}, nothing is to go")
        if not total:
            raise ValueError(f"--budget {budget}: no part of {self.name} goes as heads and channels do")
        needed = -(-(self.dense - bound) // self.per_weight)
        low, high = (round(share * total) for share in reachable_sparsities(self.units, a_min, a_max))
        if needed > high:
            raise ValueError(
                f"--budget {budget} cannot be met: with --a-min {a_min:g} at least "
                f"{told(self.dense - self.per_weight * high, self.name)} stay of {told(self.dense, self.name)}"
            )
        return max(needed, low) / total
