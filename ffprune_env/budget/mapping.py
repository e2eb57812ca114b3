"""Scores to an Allocation: Algorithm 1, and an alternative that keeps magnitudes (docs/design.md, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ffprune_env.budget.allocation import (
    Allocation,
    check_sparsity,
    group_bounds,
    parameter_budget,
    reachable_sparsities,
    settle,
)
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit

MappingName = Literal["greedy", "waterfill"]

_BISECTIONS = 64  # halvings of an interval of length 2: past float64 resolution


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
        sparsity: σ in [1 - a_max, 1 - a_min], the fraction of Σ w_i to remove.
        units: the N units.
        a_min: lowest retention rate of a unit, in [0, a_max].
        a_max: highest retention rate, in (a_min, 1].
        mapping: ``"greedy"`` (the paper's: only the order of the scores counts, nearly every unit ends at a bound)
            or ``"waterfill"`` (their magnitudes count).

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
    size = np.array([unit.group_params for unit in units])
    budget = parameter_budget(sparsity, int(n @ size))
    weights = (n * size).astype(np.float64)
    solve = greedy_rates if mapping == "greedy" else waterfill_rates
    rates = solve(scores, 1 - sparsity, weights, a_min, a_max)

    # Coarse units (heads) are rounded first; the finest (channels) then absorb what that left over.
    fine = size == size.min()
    kept = np.clip(np.rint(rates * n), low, high).astype(np.int64)
    if mapping == "waterfill" and fine.any() and not fine.all():
        left = (budget - kept[~fine] @ size[~fine]) / weights[fine].sum()
        rates[fine] = waterfill_rates(scores[fine], float(np.clip(left, a_min, a_max)), weights[fine], a_min, a_max)
    kept[fine] = np.clip(np.floor(rates[fine] * n[fine] + 1e-9), low[fine], high[fine]).astype(np.int64)
    return settle(kept, scores, sparsity, units, a_min=a_min, a_max=a_max)


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


def greedy_rates(scores: FloatArray, retention: float, weights: FloatArray, a_min: float, a_max: float) -> FloatArray:
    """Algorithm 1, steps 1-4: units in descending score take as much of the budget as a_max allows.

    Of steps 1-2, which squash the scores, the order alone counts: see :func:`descending`.

    Step 5, which rounds rates to 0.01 and gives the difference to the highest scores, is left to step 6: whole groups
    are the rounding that counts, and one before it would only move parameters away from where the scores put them.

    Args:
        scores: [N] finite scores.
        retention: P = 1 - σ, in [a_min, a_max].
        weights: w, [N] positive.
        a_min: lowest rate.
        a_max: highest rate.

    Returns:
        [N] rates within the bounds with Σ rate_i w_i = P Σ w.
    """
    rates = np.full(len(scores), a_min)
    left = retention * weights.sum() - rates @ weights  # B of step 3
    for i in descending(scores):
        rates[i] += min(max(left, 0.0) / weights[i], a_max - rates[i])
        left -= (rates[i] - a_min) * weights[i]
    return rates


def waterfill_rates(
    scores: FloatArray, retention: float, weights: FloatArray, a_min: float, a_max: float
) -> FloatArray:
    """Rates clip(A'' + c, a_min, a_max), with c such that Σ rate_i w_i = P Σ w.

    A'' = (tanh(A) + 1) / 2 · (a_max - a_min) + a_min. Arguments and result as for :func:`greedy_rates`.
    """
    wanted = (np.tanh(scores) + 1) / 2 * (a_max - a_min) + a_min
    below, above = -1.0, 1.0  # at c = -1 every rate is a_min, at c = 1 every rate is a_max
    for _ in range(_BISECTIONS):
        c = (below + above) / 2
        if np.clip(wanted + c, a_min, a_max) @ weights > retention * weights.sum():
            above = c
        else:
            below = c
    rates: FloatArray = np.clip(wanted + below, a_min, a_max)
    return rates


def waterfill_scores(rates: npt.ArrayLike, a_min: float, a_max: float) -> FloatArray:
    """Scores that ``waterfill`` maps to given rates: where a policy starts if it is to start from an allocation.

    Any common shift of A'' gives the same rates; the one taken centres them between the bounds, where tanh is steepest
    and a change of a score shows most.

    Args:
        rates: [N] rates within the bounds, whose range is less than a_max - a_min.
        a_min: lowest rate.
        a_max: highest rate.
    """
    wanted = np.asarray(rates, dtype=np.float64)
    centred = wanted - (wanted.max() + wanted.min()) / 2 + (a_min + a_max) / 2
    scores: FloatArray = np.arctanh(np.clip(2 * (centred - a_min) / (a_max - a_min) - 1, -0.999, 0.999))
    return scores


def descending(scores: FloatArray) -> IntArray:
    """Unit indices by descending A'', ties by index.

    Steps 1-2 of Algorithm 1 squash the scores, A' = clip(tanh(A + 1)/2, 0, 1) and A'' = A' (a_max - a_min) + a_min, but
    only their order is used, and with the ties of A' = 0 (every A below -1) broken by A it is the order of A.
    """
    return np.argsort(-scores, kind="stable")


def _checked_scores(scores: npt.ArrayLike, n_units: int) -> FloatArray:
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (n_units,):
        raise ValueError(f"got scores of shape {array.shape}, expected ({n_units},): one per unit")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {n_units} scores are not finite")
    return array
