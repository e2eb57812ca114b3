"""Algorithm 1, `waterfill` and even rates where groups have costs of their own, in whole groups.

What ``algorithm_1.py``, ``waterfill.py`` and ``even.py`` do with rates and parameters is done here with numbers of
groups and cost tables. Where every group of a unit costs the same, those are used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.cost_tables import CostTables

_STEP = 0.01  # of a rate, as printed
_BISECTIONS = 64


def filled_groups(order: IntArray, limit: int, tables: CostTables, low: IntArray, high: IntArray) -> IntArray:
    """Steps 3 and 4 of Algorithm 1: one unit after another takes as many groups as the budget allows.

    Args:
        order: [N] unit indices, who is served first to last.
        limit: what all may cost.
        tables: what they cost.
        low: int [N], fewest groups.
        high: int [N], most groups.

    Returns:
        int [N] groups kept; more than the limit only if the fewest are.
    """
    kept = low.copy()
    left = limit - tables.total(kept)
    for i in order:
        before = int(tables.of[i][kept[i]])
        kept[i] = tables.most(i, before + left, int(low[i]), int(high[i]))
        left -= int(tables.of[i][kept[i]]) - before
    return kept


def in_hundredths(kept: IntArray, n: IntArray, low: IntArray, high: IntArray) -> IntArray:
    """Step 5: the whole groups nearest to rates in hundredths.

    Args:
        kept: int [N].
        n: int [N], groups of every unit.
        low: int [N], fewest groups.
        high: int [N], most groups.
    """
    rates = np.rint(kept / n / _STEP) * _STEP
    return np.clip(np.rint(rates * n), low, high).astype(np.int64)


def level_groups(wanted: FloatArray, limit: int, tables: CostTables, low: IntArray, high: IntArray) -> IntArray:
    """`waterfill`: all rates moved by one constant until the groups nearest to them meet the budget.

    Units with coarse groups are rounded; those with fine ones are moved once more, to use what that left over.

    Args:
        wanted: [N] rates, of which the differences count.
        limit: what all may cost.
        tables: what they cost.
        low: int [N], fewest groups.
        high: int [N], most groups.

    Returns:
        int [N] groups kept; more than the limit only if the fewest are, or where coarse units leave too little.
    """
    n = np.array([len(table) - 1 for table in tables.of])
    near = _highest(lambda c: np.rint((wanted + c) * n), limit, tables, low, high)
    fine = tables.fine()
    low, high = np.where(fine, low, near), np.where(fine, high, near)
    return _highest(lambda c: np.floor((wanted + c) * n + 1e-9), limit, tables, low, high)


def spread(kept: IntArray, first: IntArray, limit: int, tables: CostTables, high: IntArray) -> IntArray:
    """Gives what is to spare group by group, one to each, and then whatever is free.

    Args:
        kept: int [N], groups kept within the limit.
        first: [N] unit indices, who is asked first to last.
        limit: what all may cost.
        tables: what they cost.
        high: int [N], most groups.
    """
    kept = kept.copy()
    left = limit - tables.total(kept)
    for i in first:
        price = int(tables.of[i][min(kept[i] + 1, high[i])] - tables.of[i][kept[i]])
        if kept[i] < high[i] and price <= left:
            kept[i] += 1
            left -= price
        kept[i] = tables.most(i, int(tables.of[i][kept[i]]), int(kept[i]), int(high[i]))
    return kept


def settle_priced(
    kept: IntArray, order: IntArray, limit: int, tables: CostTables, low: IntArray, high: IntArray
) -> IntArray:
    """Step 6: changes whole groups as little as needed to use the budget as fully as they can.

    What is lacking is taken from the lowest scores, of units with fine groups first; what is to spare goes to the
    highest.

    Args:
        kept: int [N], groups that nearly meet the budget.
        order: [N] unit indices, by descending score.
        limit: what all may cost.
        tables: what they cost.
        low: int [N], fewest groups.
        high: int [N], most groups.
    """
    kept, over, fine = kept.copy(), tables.total(kept) - limit, tables.fine()
    rising = order[::-1]
    for i in (*rising[fine[rising]], *rising[~fine[rising]]):
        if over <= 0:
            break
        before = int(tables.of[i][kept[i]])
        kept[i] = tables.most(i, before - over, int(low[i]), int(high[i]))
        over -= before - int(tables.of[i][kept[i]])
    for i in order:
        before = int(tables.of[i][kept[i]])
        kept[i] = tables.most(i, before - over, int(kept[i]), int(high[i]))
        over += int(tables.of[i][kept[i]]) - before
    return kept


def _highest(
    groups: Callable[[float], FloatArray], limit: int, tables: CostTables, low: IntArray, high: IntArray
) -> IntArray:
    """The groups at the highest constant that meets the limit, or at the lowest if none does."""

    def at(c: float) -> IntArray:
        return np.clip(groups(c), low, high).astype(np.int64)

    below, above = -2.0, 2.0  # rates and what they are moved by are within [-1, 1]
    for _ in range(_BISECTIONS):
        c = (below + above) / 2
        below, above = (below, c) if tables.total(at(c)) > limit else (c, above)
    return at(below)
