"""Starts that know something of the model: `ffn-only`, `fisher` and `fisher-iterated`."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.even import ffn_only
from ffprune_env.search.mean import scores_of
from ffprune_env.search.problem import LOOK_COST, Problem
from ffprune_env.search.starts.fisher import cheapest, dense_curves, drop_looks, windows_of_curves
from ffprune_env.search.starts.fisher_iterated import STEPS, iterate, step_windows
from ffprune_env.search.starts.start import Start, StartScores

logger = logging.getLogger(__name__)

Answer = Callable[[float], Allocation]
# Sparsities around the target, as fractions of it, that say which way the mean goes as σ changes.
_AROUND = (0.5, 0.75, 1.25, 1.5)


def others(targets: Sequence[float]) -> list[float]:
    """Sparsities whose answers say how the mean changes with σ: half-way between targets, or around a single one."""
    if len(targets) == 1:
        return [factor * targets[0] for factor in _AROUND]
    return [(low + high) / 2 for low, high in pairwise(targets)]


class Known(Start):
    """A start that answers every sparsity after one look at the model, from the middle of the targets."""

    @abstractmethod
    def answer(self, problem: Problem) -> Answer:
        """Looks at the model, and says what to keep at any sparsity."""

    def scores(self, problem: Problem, targets: Sequence[float]) -> StartScores:
        """The scores of what is known; where that does not reach a target those of `ffn-only`, or equal ones.

        One look serves all targets: what curves know in the middle of them holds at the others too, and between them.
        For a single target some sparsities around it are known as well.
        """
        found: dict[float, FloatArray] = {}
        known: dict[float, FloatArray] = {}
        middle = targets[len(targets) // 2]
        for start in dict.fromkeys((self, FfnOnly())):
            missing = [target for target in targets if target not in found]
            if not missing:
                break
            try:
                answer = start.answer(replace(problem, sparsity=middle))
                for target in missing:
                    found[target] = scores_of(answer(target), problem.a_min, problem.a_max)
            except ValueError as error:
                logger.warning("the search does not start from %s: %s", start.name, error)
                continue
            for at in others(targets):
                with suppress(ValueError):  # beyond what the bounds or the method can reach
                    known[at] = scores_of(answer(at), problem.a_min, problem.a_max)
        equal = np.zeros(len(problem.units))
        return StartScores({target: found.get(target, equal) for target in targets}, known)


@dataclass(frozen=True)
class FfnOnly(Known):
    """Attention whole, all FFNs at one rate."""

    name: str = "ffn-only"

    def answer(self, problem: Problem) -> Answer:
        """Looks at nothing."""
        return lambda sparsity: ffn_only(sparsity, problem.units)


@dataclass(frozen=True)
class Fisher(Known):
    """The least damage by the dense model's curves, a few backward passes."""

    name: str = "fisher"
    looks: bool = True

    def cost(self, problem: Problem) -> int:
        """A look at the dense model."""
        if problem.windows is None:
            return 0
        return LOOK_COST * (len(windows_of_curves(problem.windows)) + drop_looks(problem))

    def cheaper(self) -> Iterator[Start]:
        """`ffn-only`."""
        yield FfnOnly()

    def answer(self, problem: Problem) -> Answer:
        """From curves of the dense model."""
        curves = dense_curves(problem)
        return lambda sparsity: cheapest(replace(problem, sparsity=sparsity), curves)


@dataclass(frozen=True)
class FisherIterated(Known):
    """`fisher`, improved step by step on the pruned model."""

    steps: int = STEPS
    name: str = "fisher-iterated"
    looks: bool = True

    def cost(self, problem: Problem) -> int:
        """A look at the dense model, and one at every step."""
        if problem.windows is None:
            return 0
        return Fisher().cost(problem) + LOOK_COST * self.steps * len(step_windows(problem.windows, 0))

    def cheaper(self) -> Iterator[Start]:
        """Fewer steps, then `fisher`, then `ffn-only`."""
        yield from (replace(self, steps=steps) for steps in range(self.steps - 1, 1, -1))
        yield from (Fisher(), FfnOnly())

    def answer(self, problem: Problem) -> Answer:
        """From curves of the models on the way."""
        found, curves = iterate(problem, self.steps)
        return lambda sparsity: (
            found if sparsity == problem.sparsity else cheapest(replace(problem, sparsity=sparsity), curves)
        )
