"""`fisher`: the allocation that the damage curves call best, from a few backward passes and no search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ffprune_env.budget.allocation import (
    Allocation,
    allocation_of,
    check_sparsity,
    group_bounds,
    parameter_budget,
    reachable_sparsities,
)
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.pruning.backward import spread_windows
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.search.problem import Problem

#: Search text that one set of curves is made from, in tokens; each costs a forward and a backward pass.
CURVE_TOKENS = 4096
# Parts that a budget is counted in: usually, and at the most.
_PARTS, _MOST_PARTS = 4000, 20_000


def fisher(problem: Problem) -> Allocation:
    """Minimizes the sum of the units' damage under the budget, as :func:`damage_curves` estimates it.

    Args:
        problem: what to answer; nothing is measured, and what is looked at is counted. The curves are of the
            calibrated model if that is what the evaluator rewards.

    Raises:
        ValueError: the problem has no model or no search text, or the sparsity is out of the range of the bounds.
    """
    return cheapest(problem, dense_curves(problem))


def dense_curves(problem: Problem) -> list[FloatArray]:
    """The damage curves of the dense model, on search text."""
    prunable, windows = problem.look_inside("fisher")
    seen = windows_of_curves(windows)
    problem.meter.look(len(seen))
    return damage_curves(prunable, seen, problem.calibration)


def windows_of_curves(windows: torch.Tensor) -> torch.Tensor:
    """The windows that one set of curves is made from, spread over all that there are: int64 [n, seq_len]."""
    return spread_windows(windows, CURVE_TOKENS)


def cheapest(
    problem: Problem, curves: Sequence[FloatArray], within: tuple[IntArray, IntArray] | None = None
) -> Allocation:
    """:func:`least_damage` as the problem has it."""
    bounds = {"a_min": problem.a_min, "a_max": problem.a_max}
    return least_damage(curves, problem.sparsity, problem.units, **bounds, within=within)


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

    Dynamic programming over units and parts of the budget, Σw / 4000 or less, within which it is exact; what rounding
    to parts leaves goes group by group to where it saves most per parameter.

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
    size = np.array([unit.group_params for unit in units])
    total = sum(unit.n_params for unit in units)
    left = parameter_budget(sparsity, total) - int(low @ size)
    part = _part(size, total)
    spent = _spend(curves, size, low, high, part, left // part)
    kept = np.minimum(low + spent * part // size, high)
    left -= int((kept - low) @ size)
    while True:
        open_to = [i for i in range(len(units)) if kept[i] < high[i] and size[i] <= left]
        if not open_to:
            return allocation_of(kept, units)
        best = max(open_to, key=lambda i: (curves[i][kept[i]] - curves[i][kept[i] + 1]) / size[i])
        kept[best] += 1
        left -= int(size[best])


def _part(size: IntArray, total: int) -> int:
    """Parameters that make one part of the budget: several groups or, where those are large, what divides them all.

    A group of 2.2 parts takes 3, and so would seem dearer than one of 3.
    """
    part = -(-total // _PARTS)
    return part if 8 * size.min() <= part else max(int(np.gcd.reduce(size)), -(-total // _MOST_PARTS))


def _spend(
    curves: Sequence[FloatArray], size: IntArray, low: IntArray, high: IntArray, part: int, parts: int
) -> IntArray:
    """How many of ``parts`` parts of the budget every unit gets beyond its lowest number of groups: int [N]."""
    damage = np.zeros(parts + 1)  # the least that the units so far can do with at most so many parts
    choices = []
    for curve, s, least, most in zip(curves, size, low, high, strict=True):
        following, choice = np.full(parts + 1, np.inf), np.zeros(parts + 1, dtype=np.int64)
        for q in range(min(parts, -(-(most - least) * s // part)) + 1):
            option = damage[: parts + 1 - q] + curve[min(most, least + q * part // s)]
            better = option < following[q:]
            following[q:][better], choice[q:][better] = option[better], q
        damage = following
        choices.append(choice)
    spent = np.zeros(len(choices), dtype=np.int64)
    for i in reversed(range(len(choices))):
        spent[i] = choices[i][parts]
        parts -= int(spent[i])
    return spent
