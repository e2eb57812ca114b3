"""Scores to an Allocation: Algorithm 1 as printed, as we read it, and an alternative (docs/design.md, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ffprune_env.budget.algorithm_1 import discretized, filled, squashed
from ffprune_env.budget.allocation import (
    Allocation,
    allocation_of,
    check_sparsity,
    cost_limit,
    group_bounds,
    reachable_sparsities,
    settle,
)
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.cost_tables import CostTables, counts_groups
from ffprune_env.budget.order import descending
from ffprune_env.budget.priced import filled_groups, in_hundredths, level_groups, settle_priced
from ffprune_env.budget.units import PruneUnit
from ffprune_env.budget.waterfill import waterfill_rates, waterfill_scores, waterfill_wanted

MappingName = Literal["paper", "greedy", "waterfill"]


def allocate(
    scores: npt.ArrayLike,
    sparsity: float,
    units: Sequence[PruneUnit],
    *,
    a_min: float = 0.2,
    a_max: float = 1.0,
    mapping: MappingName = "waterfill",
) -> Allocation:
    """Maps one score per unit to whole groups that meet the parameter budget (Algorithm 1).

    Args:
        scores: [N] finite scores, the higher the more is kept.
        sparsity: σ in [1 - a_max, 1 - a_min], the fraction to remove of Σ w_i, or of what the units' costs count.
        units: the N units.
        a_min: lowest retention rate of a unit, in [0, a_max); at 0 a unit may go entirely.
        a_max: highest retention rate, in (a_min, 1].
        mapping: ``"paper"`` (Algorithm 1 as printed: only the order of A'' counts, in which all scores below -1 tie;
            nearly every unit ends at a bound), ``"greedy"`` (as we read it: the order of the scores themselves, and no
            rounding to hundredths), or ``"waterfill"`` (their magnitudes count). Ties are drawn: see
            :func:`~ffprune_env.budget.order.descending`.

    Returns:
        An allocation whose sparsity is never below ``sparsity`` and above it by less than the cheapest single group;
        where whole groups within the bounds cannot do that, by the least they can.

    Raises:
        ValueError: wrong number of scores, a non-finite score, an unknown mapping, or a sparsity that the bounds
            cannot meet; the message gives the range that would do.
    """
    if mapping not in get_args(MappingName):
        raise ValueError(f"unknown mapping {mapping!r}; allowed are {', '.join(get_args(MappingName))}")
    scores = _checked_scores(scores, len(units))
    low, high = group_bounds(units, a_min, a_max)
    check_sparsity(sparsity, units, a_min, a_max)
    sparsity = min(sparsity, reachable_sparsities(units, a_min, a_max)[1])
    n = np.array([unit.n_groups for unit in units])
    order = descending(squashed(scores, a_min, a_max) if mapping == "paper" else scores)
    if not counts_groups(units, low):
        tables = CostTables.of_units(units)
        limit = cost_limit(sparsity, units, tables)
        if mapping == "waterfill":
            near = level_groups(waterfill_wanted(scores, a_min, a_max), limit, tables, low, high)
        else:
            near = filled_groups(order, limit, tables, low, high)
        if mapping == "paper":
            near = in_hundredths(near, n, low, high)
        return allocation_of(settle_priced(near, order, limit, tables, low, high), units)
    size = np.array([unit.group_params for unit in units])
    budget = cost_limit(sparsity, units)
    weights = (n * size).astype(np.float64)
    target = (1 - sparsity, weights, a_min, a_max)
    rates = waterfill_rates(scores, *target) if mapping == "waterfill" else filled(order, *target)
    if mapping == "paper":
        rates = discretized(rates, order, *target)

    # Coarse units (heads) are rounded first; the finest (channels) then absorb what that left over.
    fine = size == size.min()
    kept = np.clip(np.rint(rates * n), low, high).astype(np.int64)
    if mapping == "waterfill" and fine.any() and not fine.all():
        left = (budget - kept[~fine] @ size[~fine]) / weights[fine].sum()
        rates[fine] = waterfill_rates(scores[fine], float(np.clip(left, a_min, a_max)), weights[fine], a_min, a_max)
    kept[fine] = np.clip(np.floor(rates[fine] * n[fine] + 1e-9), low[fine], high[fine]).astype(np.int64)
    return settle(kept, _places(order), sparsity, units, a_min=a_min, a_max=a_max)


def says_rates(mapping: MappingName) -> bool:
    """Whether scores can say any rates under a mapping; under the others they say an order, and few rates are one."""
    return mapping == "waterfill"


def allocate_rates(
    rates: npt.ArrayLike, sparsity: float, units: Sequence[PruneUnit], *, a_min: float = 0.2, a_max: float = 1.0
) -> Allocation:
    """Whole groups at given rates, all moved by one constant between the bounds until they meet the budget.

    Args:
        rates: [N] finite rates; those outside the bounds are moved to them.
        sparsity: as for :func:`allocate`, like the arguments after it.
        units: the N units.
        a_min: lowest retention rate of a unit.
        a_max: highest retention rate.

    Raises:
        ValueError: as for :func:`allocate`.
    """
    scores = waterfill_scores(np.clip(np.asarray(rates, dtype=np.float64), a_min, a_max), a_min, a_max)
    return allocate(scores, sparsity, units, a_min=a_min, a_max=a_max, mapping="waterfill")


def _checked_scores(scores: npt.ArrayLike, n_units: int) -> FloatArray:
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (n_units,):
        raise ValueError(f"got scores of shape {array.shape}, expected ({n_units},): one per unit")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {n_units} scores are not finite")
    return array


def _places(order: IntArray) -> IntArray:
    """A priority without ties for :func:`settle`: the first in order has the highest."""
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))[::-1]
    return places
