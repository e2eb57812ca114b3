"""The least damage under a budget, by dynamic programming over what every unit loses with so many groups kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ffprune_env.budget.allocation import (
    Allocation,
    allocation_of,
    check_sparsity,
    cost_limit,
    group_bounds,
    reachable_sparsities,
)
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.cost_tables import CostTables
from ffprune_env.budget.units import PruneUnit

# Parts that a budget is counted in: usually, and at the most.
_PARTS, _MOST_PARTS = 4000, 20_000


def least_damage(
    curves: Sequence[FloatArray],
    sparsity: float,
    units: Sequence[PruneUnit],
    *,
    a_min: float = 0.2,
    a_max: float = 1.0,
    within: tuple[IntArray, IntArray] | None = None,
) -> Allocation:
    """Minimizes Σ damage_i(k_i) under the budget, whatever the shape of the curves.

    Dynamic programming over units and parts of the budget, a 4000th of what counts or less, within which it is exact;
    what rounding to parts leaves goes group by group to where it saves most for what it costs.

    Args:
        curves: per unit, [n_groups + 1] damage with k groups kept.
        sparsity: as for :func:`~ffprune_env.budget.mapping.allocate`, like the arguments after it.
        units: the N units.
        a_min: lowest retention rate of a unit.
        a_max: highest retention rate.
        within: int [N] twice, the fewest and the most groups of every unit, where they are tighter than the bounds; at
            the fewest the budget must be met.

    Raises:
        ValueError: as for :func:`~ffprune_env.budget.mapping.allocate`.
    """
    low, high = group_bounds(units, a_min, a_max)
    if within is not None:
        low, high = np.maximum(low, within[0]), np.minimum(high, within[1])
    check_sparsity(sparsity, units, a_min, a_max)
    sparsity = min(sparsity, reachable_sparsities(units, a_min, a_max)[1])
    tables = CostTables.of_units(units)
    left = cost_limit(sparsity, units, tables) - tables.total(low)
    part = _part(tables, low, sum(unit.weight for unit in units))
    kept = _spend(curves, tables, low, high, part, left // part)
    left -= tables.total(kept) - tables.total(low)
    while True:
        steps = [(i, _step(tables.of[i], int(kept[i]), int(high[i]))) for i in range(len(units)) if kept[i] < high[i]]
        open_to = [(i, to, price) for i, (to, price) in steps if price <= left]
        if not open_to:
            return allocation_of(kept, units)
        best, to, price = max(open_to, key=lambda x: (curves[x[0]][kept[x[0]]] - curves[x[0]][x[1]]) / max(x[2], 1e-9))
        kept[best] = to
        left -= price


def _step(table: IntArray, k: int, most: int) -> tuple[int, int]:
    """What one group more costs, with what is free then: the groups, and the price."""
    to = min(most, int(np.searchsorted(table, table[k + 1], side="right")) - 1)
    return to, int(table[to] - table[k])


def _part(tables: CostTables, low: IntArray, total: int) -> int:
    """What makes one part of the budget: several groups or, where those are large, what divides them all.

    A group of 2.2 parts takes 3, and so would seem dearer than one of 3. What goes with a last group alone counts where
    that may go.
    """
    prices = np.concatenate([np.diff(table[least:]) for table, least in zip(tables.of, low, strict=True)])
    prices = prices[prices > 0]
    if not len(prices):
        return 1
    part = -(-total // _PARTS)
    return part if 8 * prices.min() <= part else max(int(np.gcd.reduce(prices)), -(-total // _MOST_PARTS))


def _spend(
    curves: Sequence[FloatArray], tables: CostTables, low: IntArray, high: IntArray, part: int, parts: int
) -> IntArray:
    """How many groups every unit keeps if the budget has so many parts beyond what the fewest cost: int [N]."""
    damage = np.zeros(parts + 1)  # the least that the units so far can do with at most so many parts
    choices, groups = [], []
    for i, (curve, least, most) in enumerate(zip(curves, low, high, strict=True)):
        floor = int(tables.of[i][least])
        needed = min(parts, -(-(int(tables.of[i][most]) - floor) // part))
        kept = [tables.most(i, floor + q * part, int(least), int(most)) for q in range(needed + 1)]
        following, choice = np.full(parts + 1, np.inf), np.zeros(parts + 1, dtype=np.int64)
        for q, k in enumerate(kept):
            option = damage[: parts + 1 - q] + curve[k]
            better = option < following[q:]
            following[q:][better], choice[q:][better] = option[better], q
        damage = following
        choices.append(choice)
        groups.append(kept)
    spent = np.zeros(len(choices), dtype=np.int64)
    for i in reversed(range(len(choices))):
        q = int(choices[i][parts])
        spent[i] = groups[i][q]
        parts -= q
    return spent
