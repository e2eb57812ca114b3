"""CostTables: what a budget counts of every unit at every number of groups kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit

# A group is fine if it costs at most so many times what the finest does: fine ones make up for what others round off.
_FINE = 2


def counts_groups(units: Sequence[PruneUnit], low: IntArray) -> bool:
    """Whether every group of a unit costs the same, so that numbers of groups are all that a budget has to know.

    Args:
        units: the N units.
        low: int [N], the fewest groups that each may keep: with the last one more goes than a group.
    """
    return all(unit.costs is None and (k > 0 or not unit.rest_params) for unit, k in zip(units, low, strict=True))


@dataclass(frozen=True)
class CostTables:
    """cost_i(k) of all units, in whole numbers of whatever is counted.

    Attributes:
        of: N arrays int64 [n_groups + 1], which never fall.
    """

    of: tuple[IntArray, ...]

    @classmethod
    def of_units(cls, units: Sequence[PruneUnit]) -> CostTables:
        """Those that units bring, or their parameters."""
        return cls(tuple(_table(unit) for unit in units))

    def total(self, kept: IntArray) -> int:
        """What an allocation costs.

        Args:
            kept: int [N].
        """
        return sum(int(table[k]) for table, k in zip(self.of, kept, strict=True))

    def saved(self, kept: IntArray) -> int:
        """What it costs less than the dense model.

        Args:
            kept: int [N].
        """
        return sum(int(table[-1] - table[k]) for table, k in zip(self.of, kept, strict=True))

    def most(self, i: int, cost: int, low: int, high: int) -> int:
        """The most groups of unit i that cost no more than ``cost``, within its bounds: what is free is kept.

        Args:
            i: the unit.
            cost: what they may cost.
            low: its fewest groups, which it keeps at any cost.
            high: its most.
        """
        return min(high, max(low, int(np.searchsorted(self.of[i], cost, side="right")) - 1))

    def fine(self) -> IntArray:
        """Which units have fine groups, or none that cost anything: bool [N]."""
        mean = self.mean_cost()
        finest = min((cost for cost in mean if cost > 0), default=0.0)
        return np.asarray(mean <= _FINE * finest)

    def mean_cost(self) -> FloatArray:
        """What a group of each unit costs in the mean, but for its last one, with which more may go: [N]."""
        return np.array([np.diff(table[1:] if len(table) > 2 else table).mean() for table in self.of])


def _table(unit: PruneUnit) -> IntArray:
    if unit.costs is not None:
        return np.array(unit.costs, dtype=np.int64)
    k = np.arange(unit.n_groups + 1)
    return np.asarray(k * unit.group_params + unit.rest_params * (k > 0), dtype=np.int64)
