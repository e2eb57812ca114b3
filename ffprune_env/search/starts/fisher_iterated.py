"""`fisher-iterated`: damage curves measured again where they led, and followed a little further; still no search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.lm.phases import phase
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.search.meter import LOOK_COST
from ffprune_env.search.problem import Problem
from ffprune_env.search.starts.fisher import Fisher, cheapest, fisher
from ffprune_env.search.starts.known import FfnOnly, Known
from ffprune_env.search.starts.names import FISHER_ITERATED
from ffprune_env.search.starts.start import Start
from ffprune_env.texts.spread import spread_windows

#: Times that the curves are measured again, at most; all but the first allocation are averaged.
STEPS = 8
#: Search text of each time, in tokens.
STEP_TOKENS = 4096
# How far rates may move in one of STEPS, and in one of few: units act on each other, which curves of single units do
# not know.
_TRUST, _MOST_TRUST = 0.08, 0.16


def fisher_iterated(problem: Problem, steps: int = STEPS) -> Allocation:
    """Improves `fisher` step by step on the pruned, calibrated model.

    Far from the dense model its curves are no longer true, and the units have begun to act on each other. So they are
    measured again around what was found (:func:`damage_curves` with ``kept``, where first-order terms count: one
    backward pass gives the derivative of the loss with respect to every unit's rate) and minimized within a small
    distance of it. Every step sees other text, and the last allocations are averaged, which evens out their noise.

    Args:
        problem: what to answer; nothing is measured.
        steps: how often, at least 1; more steps see more text and are steadier.

    Raises:
        ValueError: as for :func:`~ffprune_env.search.starts.fisher.fisher`.
    """
    return iterate(problem, steps)[0]


def iterate(problem: Problem, steps: int, start: Allocation | None = None) -> tuple[Allocation, list[FloatArray]]:
    """`fisher-iterated`, and the mean of the curves that it followed: what they know holds at other sparsities too.

    Args:
        problem: what to answer.
        steps: as above; where there are fewer than STEPS, each may go farther.
        start: where to begin, which then is as good as a step; None: at `fisher`, which is not.
    """
    prunable, windows = problem.look_inside(FISHER_ITERATED)
    trust = min(_TRUST * max(1.0, STEPS / steps), _MOST_TRUST)
    reach = np.maximum(1, np.floor(trust * np.array([unit.n_groups for unit in problem.units]))).astype(np.int64)
    found, looks = [start or fisher(problem)], []
    with phase("improving the start", f"{steps} steps", steps) as advance:
        for step in range(steps):
            kept, seen = found[-1].kept, step_windows(windows, step)
            problem.meter.look(len(seen))
            looks.append(damage_curves(prunable, seen, problem.calibration, kept))
            found.append(cheapest(problem, looks[-1], (kept - reach, kept + reach)))
            advance()
    good = found if start is not None else found[min(2, steps) :]
    mean = problem.allocate(np.mean([allocation.rates for allocation in good], axis=0))
    return mean, [np.mean(curves, axis=0) for curves in zip(*looks, strict=True)]


def step_windows(windows: torch.Tensor, step: int) -> torch.Tensor:
    """The text of one step: windows that are spread over all, and if there are enough not those of the step before.

    Args:
        windows: int64 [n, seq_len].
        step: counted from 0.
    """
    n = len(spread_windows(windows, STEP_TOKENS))
    apart = len(windows) // n  # so many steps have text of their own, then it comes round again
    return spread_windows(windows[step % apart :: apart], STEP_TOKENS)


def cost_of_steps(problem: Problem, steps: int) -> int:
    """What a start costs that is improved: a look at the dense model, and one at every step, in windows charged.

    Args:
        problem: what is to be answered; without text there is nothing to look at.
        steps: how often it is improved; of no steps the dense model is not looked at either.
    """
    if problem.windows is None or not steps:
        return 0
    return Fisher().cost(problem) + LOOK_COST * steps * len(step_windows(problem.windows, 0))


@dataclass(frozen=True)
class FisherIterated(Known):
    """`fisher`, improved step by step on the pruned model."""

    steps: int = STEPS
    name: str = FISHER_ITERATED
    looks: bool = True

    def cost(self, problem: Problem) -> int:
        """A look at the dense model, and one at every step."""
        return cost_of_steps(problem, self.steps)

    def cheaper(self) -> Iterator[Start]:
        """Fewer steps, then `fisher`, then `ffn-only`."""
        yield from (replace(self, steps=steps) for steps in range(self.steps - 1, 1, -1))
        yield from (Fisher(), FfnOnly())

    def answer(self, problem: Problem) -> Callable[[float], Allocation]:
        """From curves of the models on the way."""
        found, curves = iterate(problem, self.steps)
        return lambda sparsity: (
            found if sparsity == problem.sparsity else cheapest(replace(problem, sparsity=sparsity), curves)
        )
