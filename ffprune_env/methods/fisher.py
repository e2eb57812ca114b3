"""`fisher`: the allocation that the damage curves call best, from a few backward passes and no search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ffprune_env.allocation import Allocation, FloatArray, IntArray, group_bounds, parameter_budget, settle
from ffprune_env.methods.problem import Problem
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.units import PruneUnit

_TOKENS = 4096  # of calibration text, each of which costs a forward and a backward pass
_BISECTIONS = 60


def fisher(problem: Problem) -> Allocation:
    """Minimizes the sum of the units' damage under the budget, as :func:`damage_curves` estimates it.

    Args:
        problem: what to answer; nothing is measured. The curves are of the calibrated model if that is what the
            evaluator rewards.

    Raises:
        ValueError: the problem has no model or no calibration text, or the sparsity is out of the range of the bounds.
    """
    if problem.prunable is None or problem.windows is None:
        raise ValueError("fisher looks at gradients: it needs a model and calibration text")
    n = min(len(problem.windows), max(1, _TOKENS // problem.windows.shape[1]))
    spread = np.linspace(0, len(problem.windows) - 1, n).round().astype(int)  # calibration text is sorted by subject
    curves = damage_curves(problem.prunable, problem.windows[spread], problem.calibration)
    return least_damage(curves, problem.sparsity, problem.meter.units, a_min=problem.a_min, a_max=problem.a_max)


def least_damage(
    curves: Sequence[FloatArray],
    sparsity: float,
    units: Sequence[PruneUnit],
    *,
    a_min: float = 0.2,
    a_max: float = 1.0,
) -> Allocation:
    """Minimizes Σ damage_i(k_i) under the budget, by the price of a parameter at which it is just met.

    At a price λ every unit keeps the number of groups that makes damage_i(k) + λ · (its parameters) least; bisection
    finds λ. That is optimal for the budget it uses exactly, and what it leaves is less than one jump of one unit.

    Args:
        curves: per unit, [n_groups + 1] damage with k groups kept.
        sparsity: as for :func:`~ffprune_env.budget.allocate`, like the arguments after it.
        units: the N units.
        a_min: lowest retention rate of a unit.
        a_max: highest retention rate.

    Raises:
        ValueError: as for :func:`~ffprune_env.budget.allocate`.
    """
    low, high = group_bounds(units, a_min, a_max)
    size = np.array([unit.group_params for unit in units])
    budget = parameter_budget(sparsity, sum(unit.n_params for unit in units))

    def at_price(price: float) -> IntArray:
        return np.array(
            [
                least + int(np.argmin(curve[least : most + 1] + price * s * np.arange(least, most + 1)))
                for curve, s, least, most in zip(curves, size, low, high, strict=True)
            ]
        )

    cheap, dear = 0.0, max(float(np.max(curve)) for curve in curves) / float(size.min()) + 1e-30
    for _ in range(_BISECTIONS):
        price = (cheap * dear) ** 0.5 if cheap else dear * 1e-12
        if at_price(price) @ size > budget:
            cheap = price
        else:
            dear = price
    kept = at_price(dear)
    # What one more group would save in every unit, per parameter: whoever saves most takes what is left.
    marginal = (
        np.array([curve[k] - curve[min(k + 1, m)] for curve, k, m in zip(curves, kept, high, strict=True)]) / size
    )
    return settle(kept, marginal, sparsity, units, a_min=a_min, a_max=a_max)
