"""The two baselines in every table: `uniform` and `ffn-only`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ffprune_env.budget.allocation import (
    Allocation,
    allocation_of,
    check_sparsity,
    cost_limit,
    group_bounds,
    one_group,
)
from ffprune_env.budget.cost_tables import CostTables, counts_groups
from ffprune_env.budget.priced import level_groups, spread
from ffprune_env.budget.units import PruneUnit


def uniform(sparsity: float, units: Sequence[PruneUnit]) -> Allocation:
    """The `uniform` baseline: every unit at rate P, heads rounded to the nearest, the residue spread over the FFNs."""
    return _even(sparsity, units, attention_rate=1 - sparsity)


def ffn_only(sparsity: float, units: Sequence[PruneUnit]) -> Allocation:
    """The `ffn-only` baseline: attention whole, all FFNs at one rate."""
    return _even(sparsity, units, attention_rate=1.0)


BASELINES: dict[str, Callable[[float, Sequence[PruneUnit]], Allocation]] = {"uniform": uniform, "ffn-only": ffn_only}


def _even(sparsity: float, units: Sequence[PruneUnit], attention_rate: float) -> Allocation:
    a_min = one_group(units)
    low, high = group_bounds(units, a_min, 1.0)
    check_sparsity(sparsity, units, a_min, 1.0)
    ffn = np.array([unit.kind == "ffn" for unit in units])
    first = np.array([*np.flatnonzero(ffn), *np.flatnonzero(~ffn)])
    if not counts_groups(units, low):
        tables = CostTables.of_units(units)
        limit = cost_limit(sparsity, units, tables)
        fewest = low if attention_rate < 1 else np.where(ffn, low, high)
        kept = level_groups(np.zeros(len(units)), limit, tables, fewest, high)
        if tables.total(kept) > limit:
            raise _too_little(sparsity, sum(x.weight for x in units if x.kind == "ffn") / sum(x.weight for x in units))
        return allocation_of(spread(kept, first, limit, tables, high), units)
    n = np.array([unit.n_groups for unit in units])
    size = np.array([unit.group_params for unit in units])
    budget = cost_limit(sparsity, units)
    kept = np.where(ffn, 0, np.clip(np.rint(attention_rate * n), low, high)).astype(np.int64)
    rate = (budget - kept @ size) / (n * size)[ffn].sum()
    if np.floor(rate * n[ffn]).min() < 1:
        raise _too_little(sparsity, (n * size)[ffn].sum() / (n @ size))
    kept[ffn] = np.minimum(np.floor(rate * n[ffn]), high[ffn])
    # What is left then is less than a group of an FFN; a head may fit in where these groups are large.
    for i in first:
        if kept[i] < high[i] and kept @ size + size[i] <= budget:
            kept[i] += 1
    return allocation_of(kept, units)


def _too_little(sparsity: float, most: float) -> ValueError:
    return ValueError(
        f"sparsity {sparsity} would leave an FFN less than one group: the FFNs are only {most:.4g} of what counts"
    )
