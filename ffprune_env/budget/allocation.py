"""Whole groups that meet the parameter budget: an Allocation, and step 6 of Algorithm 1 that makes one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.cost_tables import CostTables, counts_groups
from ffprune_env.budget.priced import settle_priced
from ffprune_env.budget.units import PruneUnit

_FARTHEST: tuple[float, list[int]] = (math.inf, [])


@dataclass(frozen=True)
class Allocation:
    """How much of every unit stays.

    Attributes:
        kept: int64 [N], groups kept per unit.
        rates: float64 [N], kept / n_groups.
        sparsity: fraction removed of Σ w_i, or of what the units' costs count, exact.
    """

    kept: IntArray
    rates: FloatArray
    sparsity: float


def settle(
    kept: npt.ArrayLike,
    priority: npt.ArrayLike,
    sparsity: float,
    units: Sequence[PruneUnit],
    *,
    a_min: float = 0.2,
    a_max: float = 1.0,
) -> Allocation:
    """Changes whole groups as little as needed to use the budget as fully as they can (Algorithm 1, step 6).

    Args:
        kept: int [N], groups kept that nearly meet the budget.
        priority: [N] finite; what is to spare goes to the highest, what is lacking is taken from the lowest.
        sparsity: as for :func:`~ffprune_env.budget.mapping.allocate`, like the arguments after it.
        units: the N units.
        a_min: lowest retention rate of a unit.
        a_max: highest retention rate.

    Raises:
        ValueError: as for :func:`~ffprune_env.budget.mapping.allocate`.
    """
    low, high = group_bounds(units, a_min, a_max)
    check_sparsity(sparsity, units, a_min, a_max)
    sparsity = min(sparsity, reachable_sparsities(units, a_min, a_max)[1])  # the check forgives rounding, groups do not
    nearly = np.clip(np.asarray(kept, dtype=np.int64), low, high)
    order = np.argsort(-np.asarray(priority, dtype=np.float64), kind="stable")
    if not counts_groups(units, low):
        tables = CostTables.of_units(units)
        limit = cost_limit(sparsity, units, tables)
        return allocation_of(settle_priced(nearly, order, limit, tables, low, high), units)
    size = np.array([unit.group_params for unit in units])
    return allocation_of(_settle(nearly, order, size, low, high, cost_limit(sparsity, units)), units)


def allocation_of(kept: npt.ArrayLike, units: Sequence[PruneUnit]) -> Allocation:
    """The allocation that keeps given numbers of groups.

    Args:
        kept: int [N].
        units: the N units.
    """
    counts = np.asarray(kept, dtype=np.int64)
    n = np.array([unit.n_groups for unit in units])
    return Allocation(counts, counts / n, _saved(counts, units) / _total(units))


def whole(units: Sequence[PruneUnit]) -> Allocation:
    """The allocation that keeps everything."""
    kept = np.array([unit.n_groups for unit in units], dtype=np.int64)
    return Allocation(kept, np.ones(len(units)), 0.0)


def group_bounds(units: Sequence[PruneUnit], a_min: float, a_max: float) -> tuple[IntArray, IntArray]:
    """Fewest and most groups each unit may keep: ceil(a_min n_i) and floor(a_max n_i).

    With a_min = 0 a unit may go entirely; see :func:`one_group` for the bound that leaves each a group.

    Raises:
        ValueError: the bounds are not 0 ≤ a_min < a_max ≤ 1, or no whole number of groups lies between them.
    """
    if not 0 <= a_min < a_max <= 1:
        raise ValueError(f"retention bounds must satisfy 0 ≤ a_min < a_max ≤ 1, got a_min={a_min}, a_max={a_max}")
    n = np.array([unit.n_groups for unit in units])
    low = np.ceil(a_min * n - 1e-9).astype(np.int64)
    if a_min > 0:
        low = np.maximum(1, low)
    high = np.floor(a_max * n + 1e-9).astype(np.int64)
    if (low > high).any():
        unit = units[int(np.argmax(low > high))]
        raise ValueError(
            f"{unit.name}: no whole number of its {unit.n_groups} groups lies between a_min={a_min} and a_max={a_max}; "
            f"widen the bounds"
        )
    return low, high


def one_group(units: Sequence[PruneUnit]) -> float:
    """The highest a_min at which every unit may be left a single group."""
    return 1 / max(unit.n_groups for unit in units)


def reachable_sparsities(units: Sequence[PruneUnit], a_min: float, a_max: float) -> tuple[float, float]:
    """The target sparsities that :func:`~ffprune_env.budget.mapping.allocate` can meet with whole groups."""
    low, high = group_bounds(units, a_min, a_max)
    total = _total(units)
    if counts_groups(units, low):
        return max(0.0, 1 - a_max), min(1 - a_min, _saved(low, units) / total)
    return _saved(high, units) / total, min(1.0, _saved(low, units) / total)


def check_sparsity(sparsity: float, units: Sequence[PruneUnit], a_min: float, a_max: float) -> None:
    """Raises ValueError with the feasible range where whole groups could not meet a target sparsity."""
    lowest, highest = reachable_sparsities(units, a_min, a_max)
    tolerance = 1e-9
    if not lowest - tolerance <= sparsity <= highest + tolerance:  # also refuses NaN
        least = "" if a_min == 0 else " (at least one group per unit)"
        bound = f"a_max={a_max}" if sparsity < lowest else f"a_min={a_min}{least}"
        raise ValueError(
            f"sparsity {sparsity} is out of range: with {bound} it must be between {lowest:.4g} and {highest:.4g}"
        )


def cost_limit(sparsity: float, units: Sequence[PruneUnit], tables: CostTables | None = None) -> int:
    """What all units may cost with the achieved sparsity, as reported, not below the target.

    Args:
        sparsity: the target.
        units: the N units.
        tables: what they cost; None: their groups' parameters, and nothing else.
    """
    total = _total(units)
    removed = max(0, math.floor(sparsity * total) - 1)
    while removed < total and removed / total < sparsity:
        removed += 1
    dense = total if tables is None else sum(int(table[-1]) for table in tables.of)
    return dense - removed


def _total(units: Sequence[PruneUnit]) -> int:
    """What σ is a fraction of."""
    return sum(unit.weight for unit in units)


def _saved(kept: IntArray, units: Sequence[PruneUnit]) -> int:
    """What an allocation costs less than the dense model."""
    if counts_groups(units, kept):
        return sum(unit.group_params * (unit.n_groups - int(k)) for unit, k in zip(units, kept, strict=True))
    return CostTables.of_units(units).saved(kept)


def _settle(kept: IntArray, order: IntArray, size: IntArray, low: IntArray, high: IntArray, budget: int) -> IntArray:
    """Changes a rounded allocation as little as needed to use the budget as fully as whole groups can (step 6).

    What is to spare goes to the highest scores, what is lacking is taken from the lowest.
    """
    sizes = np.unique(size)[::-1]  # coarse to fine
    classes = [np.flatnonzero(size == s) for s in sizes]
    totals = _closest_totals(
        [int(kept[members].sum()) for members in classes],
        [(int(low[members].sum()), int(high[members].sum())) for members in classes],
        [int(s) for s in sizes],
        budget,
    )
    kept = kept.copy()
    for members, total in zip(classes, totals, strict=True):
        change = total - int(kept[members].sum())
        ranked = order[np.isin(order, members)]
        for i in ranked if change > 0 else ranked[::-1]:
            step = int(np.clip(change, low[i] - kept[i], high[i] - kept[i]))
            kept[i] += step
            change -= step
    return kept


def _closest_totals(wanted: list[int], bounds: list[tuple[int, int]], sizes: list[int], budget: int) -> list[int]:
    """Picks how many groups of each size stay in all: within the budget, least to spare, then nearest to ``wanted``.

    Args:
        wanted: groups kept per size class after rounding, coarse to fine.
        bounds: fewest and most groups of each class.
        sizes: parameters per group of each class, descending.
        budget: parameters that may stay; all classes at their fewest fit in it.

    Returns:
        Groups kept per class.
    """

    def finish(coarse: Sequence[int], used: int) -> tuple[int, list[int]] | None:
        """The finest class fills what the coarse ones leave; None if they leave too little."""
        fewest, most = bounds[-1]
        fine = min(most, (budget - used) // sizes[-1])
        return None if fine < fewest else (budget - used - fine * sizes[-1], [*coarse, fine])

    used = sum(k * s for k, s in zip(wanted[:-1], sizes[:-1], strict=True))
    rounded = finish(wanted[:-1], used)
    if rounded is not None and rounded[0] < sizes[-1]:
        return rounded[1]
    # Rarely (when the fine class is stuck at a bound) coarse groups must move too: walk all their reachable sums.
    reachable: dict[int, tuple[float, list[int]]] = {0: (0, [])}  # parameters used -> (distance from wanted, counts)
    for target, (fewest, most), s in zip(wanted[:-1], bounds[:-1], sizes[:-1], strict=True):
        following: dict[int, tuple[float, list[int]]] = {}
        for used, (distance, counts) in reachable.items():
            for k in range(fewest, most + 1):
                option = (distance + abs(k - target) * s, [*counts, k])
                if used + k * s <= budget and option < following.get(used + k * s, _FARTHEST):
                    following[used + k * s] = option
        reachable = following
    finished = ((finish(counts, used), distance) for used, (distance, counts) in reachable.items())
    # Anything to spare below the cheapest group is as good as none; among those the nearest wins.
    options = [(max(0, end[0] - sizes[-1] + 1), distance, end[1]) for end, distance in finished if end is not None]
    return min(options)[2]
