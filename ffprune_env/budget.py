"""Scores to an Allocation: Algorithm 1 of the paper, and an alternative that keeps magnitudes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ffprune_env.pruning.units import PruneUnit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Mapping = Literal["greedy", "waterfill"]

_BISECTIONS = 64  # halvings of an interval of length 2: past float64 resolution
_FARTHEST: tuple[float, list[int]] = (math.inf, [])


@dataclass(frozen=True)
class Allocation:
    """How much of every unit stays.

    Attributes:
        kept: int64 [N], groups kept per unit.
        rates: float64 [N], kept / n_groups.
        sparsity: fraction of Σ w_i removed, exact.
    """

    kept: IntArray
    rates: FloatArray
    sparsity: float


def allocate(
    scores: npt.ArrayLike,
    sparsity: float,
    units: Sequence[PruneUnit],
    *,
    a_min: float = 0.2,
    a_max: float = 1.0,
    mapping: Mapping = "greedy",
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
    if mapping not in get_args(Mapping):
        raise ValueError(f"unknown mapping {mapping!r}; allowed are {', '.join(get_args(Mapping))}")
    scores = _checked_scores(scores, len(units))
    low, high = group_bounds(units, a_min, a_max)
    check_sparsity(sparsity, units, a_min, a_max)
    sparsity = min(sparsity, sparsity_range(units, a_min, a_max)[1])
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
        sparsity: as for :func:`allocate`, like the arguments after it.
        units: the N units.
        a_min: lowest retention rate of a unit.
        a_max: highest retention rate.

    Raises:
        ValueError: as for :func:`allocate`.
    """
    low, high = group_bounds(units, a_min, a_max)
    check_sparsity(sparsity, units, a_min, a_max)
    sparsity = min(sparsity, sparsity_range(units, a_min, a_max)[1])  # the check forgives rounding, groups do not
    size = np.array([unit.group_params for unit in units])
    total = sum(unit.n_params for unit in units)
    nearly = np.clip(np.asarray(kept, dtype=np.int64), low, high)
    order = descending(_checked_scores(priority, len(units)))
    return allocation_of(_settle(nearly, order, size, low, high, parameter_budget(sparsity, total)), units)


def allocation_of(kept: npt.ArrayLike, units: Sequence[PruneUnit]) -> Allocation:
    """The allocation that keeps given numbers of groups.

    Args:
        kept: int [N].
        units: the N units.
    """
    counts = np.asarray(kept, dtype=np.int64)
    n = np.array([unit.n_groups for unit in units])
    size = np.array([unit.group_params for unit in units])
    total = int(n @ size)
    return Allocation(counts, counts / n, (total - int(counts @ size)) / total)


def whole(units: Sequence[PruneUnit]) -> Allocation:
    """The allocation that keeps everything."""
    kept = np.array([unit.n_groups for unit in units], dtype=np.int64)
    return Allocation(kept, np.ones(len(units)), 0.0)


def greedy_rates(scores: FloatArray, retention: float, weights: FloatArray, a_min: float, a_max: float) -> FloatArray:
    """Algorithm 1, steps 1-4: units in descending score take as much of the budget as a_max allows.

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


def group_bounds(units: Sequence[PruneUnit], a_min: float, a_max: float) -> tuple[IntArray, IntArray]:
    """Fewest and most groups each unit may keep: max(1, ceil(a_min n_i)) and floor(a_max n_i).

    Raises:
        ValueError: the bounds are not 0 ≤ a_min < a_max ≤ 1, or no whole number of groups lies between them.
    """
    if not 0 <= a_min < a_max <= 1:
        raise ValueError(f"retention bounds must satisfy 0 ≤ a_min < a_max ≤ 1, got a_min={a_min}, a_max={a_max}")
    n = np.array([unit.n_groups for unit in units])
    low = np.maximum(1, np.ceil(a_min * n - 1e-9)).astype(np.int64)
    high = np.floor(a_max * n + 1e-9).astype(np.int64)
    if (low > high).any():
        unit = units[int(np.argmax(low > high))]
        raise ValueError(
            f"{unit.name}: no whole number of its {unit.n_groups} groups lies between a_min={a_min} and a_max={a_max}; "
            f"widen the bounds"
        )
    return low, high


def sparsity_range(units: Sequence[PruneUnit], a_min: float, a_max: float) -> tuple[float, float]:
    """The target sparsities that :func:`allocate` can meet with whole groups under the bounds."""
    low, _ = group_bounds(units, a_min, a_max)
    total = sum(unit.n_params for unit in units)
    floor = sum(unit.group_params * int(k) for unit, k in zip(units, low, strict=True))
    return max(0.0, 1 - a_max), min(1 - a_min, (total - floor) / total)


def check_sparsity(sparsity: float, units: Sequence[PruneUnit], a_min: float, a_max: float) -> None:
    """Raises ValueError with the feasible range where :func:`allocate` could not meet a target sparsity."""
    lowest, highest = sparsity_range(units, a_min, a_max)
    tolerance = 1e-9
    if not lowest - tolerance <= sparsity <= highest + tolerance:  # also refuses NaN
        bound = f"a_max={a_max}" if sparsity < lowest else f"a_min={a_min} (at least one group per unit)"
        raise ValueError(
            f"sparsity {sparsity} is out of range: with {bound} it must be between {lowest:.4g} and {highest:.4g}"
        )


def parameter_budget(sparsity: float, total: int) -> int:
    """Most of ``total`` parameters that may stay with the achieved sparsity, as reported, not below the target."""
    removed = max(0, math.floor(sparsity * total) - 1)
    while removed < total and removed / total < sparsity:
        removed += 1
    return total - removed


def _checked_scores(scores: npt.ArrayLike, n_units: int) -> FloatArray:
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (n_units,):
        raise ValueError(f"got scores of shape {array.shape}, expected ({n_units},): one per unit")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {n_units} scores are not finite")
    return array


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
