"""The two policies that every table holds: `uniform` and `ffn-only`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ffprune_env.budget.allocation import Allocation, allocation_of, check_sparsity, group_bounds, parameter_budget
from ffprune_env.budget.units import PruneUnit


def uniform(sparsity: float, units: Sequence[PruneUnit]) -> Allocation:
    """The `uniform` baseline: every unit at rate P, heads rounded to the nearest, the residue spread over the FFNs."""
    return _even(sparsity, units, attention_rate=1 - sparsity)


def ffn_only(sparsity: float, units: Sequence[PruneUnit]) -> Allocation:
    """The `ffn-only` baseline: attention whole, all FFNs at one rate."""
    return _even(sparsity, units, attention_rate=1.0)


BASELINES: dict[str, Callable[[float, Sequence[PruneUnit]], Allocation]] = {"uniform": uniform, "ffn-only": ffn_only}


def _even(sparsity: float, units: Sequence[PruneUnit], attention_rate: float) -> Allocation:
    low, high = group_bounds(units, 0.0, 1.0)
    check_sparsity(sparsity, units, 0.0, 1.0)
    n = np.array([unit.n_groups for unit in units])
    size = np.array([unit.group_params for unit in units])
    ffn = np.array([unit.kind == "ffn" for unit in units])
    budget = parameter_budget(sparsity, int(n @ size))
    kept = np.where(ffn, 0, np.clip(np.rint(attention_rate * n), low, high)).astype(np.int64)
    rate = (budget - kept @ size) / (n * size)[ffn].sum()
    if np.floor(rate * n[ffn]).min() < 1:
        most = (n * size)[ffn].sum() / (n @ size)
        raise ValueError(
            f"sparsity {sparsity} would leave an FFN less than one group: the FFNs are only {most:.4g} of Σ w"
        )
    kept[ffn] = np.minimum(np.floor(rate * n[ffn]), high[ffn])
    # What is left then is less than a group of an FFN; a head may fit in where these groups are large.
    for i in (*np.flatnonzero(ffn), *np.flatnonzero(~ffn)):
        if kept[i] < high[i] and kept @ size + size[i] <= budget:
            kept[i] += 1
    return allocation_of(kept, units)
