"""`fisher`: the allocation that the damage curves call best, from a few backward passes and no search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ffprune_env.budget.allocation import Allocation, group_bounds
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.least_damage import least_damage
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.drops import drop_losses, with_drops
from ffprune_env.search.meter import LOOK_COST
from ffprune_env.search.problem import Problem
from ffprune_env.search.starts.known import FfnOnly, Known
from ffprune_env.search.starts.names import FISHER
from ffprune_env.search.starts.start import Start
from ffprune_env.texts.spread import spread_windows

#: Search text that one set of curves is made from, in tokens; each costs a forward and a backward pass.
CURVE_TOKENS = 4096
#: Search text on which every unit is left out once, where units may go entirely: half a forward pass a unit.
DROP_TOKENS = 2048


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
    """The damage curves of the dense model, on search text; where units may go entirely, they end in measurements."""
    prunable, windows = problem.look_inside("fisher")
    seen = windows_of_curves(windows)
    problem.meter.look(len(seen))
    curves = damage_curves(prunable, seen, problem.calibration)
    if group_bounds(problem.units, problem.a_min, problem.a_max)[0].all():
        return curves
    problem.meter.look(drop_looks(problem))
    return with_drops(curves, drop_losses(prunable, spread_windows(windows, DROP_TOKENS)))


def drop_looks(problem: Problem) -> int:
    """How many looks cost as much as leaving out every unit once; 0 where none may go."""
    if problem.windows is None or group_bounds(problem.units, problem.a_min, problem.a_max)[0].all():
        return 0
    return -(-len(spread_windows(problem.windows, DROP_TOKENS)) * len(problem.units) // (2 * LOOK_COST))


def windows_of_curves(windows: torch.Tensor) -> torch.Tensor:
    """The windows that one set of curves is made from, spread over all that there are: int64 [n, seq_len]."""
    return spread_windows(windows, CURVE_TOKENS)


def cheapest(
    problem: Problem, curves: Sequence[FloatArray], within: tuple[IntArray, IntArray] | None = None
) -> Allocation:
    """:func:`~ffprune_env.budget.least_damage.least_damage` as the problem has it."""
    bounds = {"a_min": problem.a_min, "a_max": problem.a_max}
    return least_damage(curves, problem.sparsity, problem.units, **bounds, within=within)


@dataclass(frozen=True)
class Fisher(Known):
    """The least damage by the dense model's curves, a few backward passes."""

    name: str = FISHER
    looks: bool = True

    def cost(self, problem: Problem) -> int:
        """A look at the dense model."""
        if problem.windows is None:
            return 0
        return LOOK_COST * (len(windows_of_curves(problem.windows)) + drop_looks(problem))

    def cheaper(self) -> Iterator[Start]:
        """`ffn-only`."""
        yield FfnOnly()

    def answer(self, problem: Problem) -> Callable[[float], Allocation]:
        """From curves of the dense model."""
        curves = dense_curves(problem)
        return lambda sparsity: cheapest(replace(problem, sparsity=sparsity), curves)
