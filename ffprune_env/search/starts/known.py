"""Starts that know something of the model, and the simplest of them: `ffn-only`."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ffprune_env.budget.allocation import Allocation, check_sparsity
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.even import ffn_only
from ffprune_env.search.mean import scores_of
from ffprune_env.search.problem import Problem
from ffprune_env.search.starts.names import FFN_ONLY
from ffprune_env.search.starts.start import Start, StartScores

logger = logging.getLogger(__name__)

# Sparsities around the target, as fractions of it, that say which way the mean goes as σ changes.
_AROUND = (0.5, 0.75, 1.25, 1.5)


def others(targets: Sequence[float], problem: Problem) -> list[float]:
    """Sparsities whose answers say how the mean changes with σ, as far as the bounds on rates allow them.

    Args:
        targets: ascending; half-way between two lies another, or some around a single one.
        problem: of these bounds.
    """
    if len(targets) == 1:
        found = [factor * targets[0] for factor in _AROUND]
    else:
        found = [(low + high) / 2 for low, high in pairwise(targets)]
    return [at for at in found if _can_be_met(at, problem)]


def _can_be_met(sparsity: float, problem: Problem) -> bool:
    try:
        check_sparsity(sparsity, problem.units, problem.a_min, problem.a_max)
    except ValueError:
        return False
    return True


class Known(Start):
    """A start that answers every sparsity after one look at the model, from the middle of the targets."""

    @abstractmethod
    def answer(self, problem: Problem) -> Callable[[float], Allocation]:
        """Looks at the model, and says what to keep at any sparsity."""

    def scores(self, problem: Problem, targets: Sequence[float]) -> StartScores:
        """The scores of what is known; where that does not reach a target those of `ffn-only`, or equal ones.

        One look serves all targets: what curves know in the middle of them holds at the others too, and between them.
        For a single target some sparsities around it are known as well.
        """
        found: dict[float, FloatArray] = {}
        known: dict[float, FloatArray] = {}
        middle = targets[len(targets) // 2]
        for start in dict.fromkeys((self, FfnOnly())):  # this start, then `ffn-only`, once each
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
            for at in others(targets, problem):
                with suppress(ValueError):  # beyond what the method can reach
                    known[at] = scores_of(answer(at), problem.a_min, problem.a_max)
        equal = np.zeros(len(problem.units))
        return StartScores({target: found.get(target, equal) for target in targets}, known)


@dataclass(frozen=True)
class FfnOnly(Known):
    """Attention whole, all FFNs at one rate."""

    name: str = FFN_ONLY

    def answer(self, problem: Problem) -> Callable[[float], Allocation]:
        """Looks at nothing; says so where bounds on rates make it start from what is only near it."""
        with suppress(ValueError):  # what cannot be reached at all is said when it is asked for
            kept = ffn_only(problem.sparsity, problem.units).rates
            if kept.min() < problem.a_min or kept.max() > problem.a_max:
                logger.warning(
                    "ffn-only keeps %.3g to %.3g of its units at sparsity %g: the search starts from what is nearest "
                    "within the bounds, %g to %g",
                    kept.min(), kept.max(), problem.sparsity, problem.a_min, problem.a_max,
                )  # fmt: skip
        return lambda sparsity: ffn_only(sparsity, problem.units)
