"""`policy`: one search by PPO for all sparsities that are asked about, whose policy sees which one it answers."""

from __future__ import annotations

import logging

from ffprune_env.budget.allocation import Allocation
from ffprune_env.methods.ppo import Found, search_by_ppo
from ffprune_env.search.problem import Problem
from ffprune_env.search.settings import SearchSettings

logger = logging.getLogger(__name__)


def policy(problem: Problem, settings: SearchSettings | None = None) -> Allocation:
    """The answer of one search for all targets at the sparsity of the problem.

    Args:
        problem: what to answer; its budget is for all targets together.
        settings: as for :func:`answer_all`.

    Raises:
        ValueError: as for :func:`answer_all`.
    """
    found = answer_all(problem, settings)[problem.sparsity]
    problem.meter.trace += found.trace
    return found.allocation


def answer_all(problem: Problem, settings: SearchSettings | None = None) -> dict[float, Found]:
    """Searches by PPO at all targets in turns, for as many evaluations as the windows of the budget last.

    Args:
        problem: what to answer; its budget is for all targets together, with the finalists of each.
        settings: of the search; sparsity, windows, bounds, seed and evaluations are the problem's.

    Returns:
        What it found by sparsity, at the targets and at the sparsity of the problem.

    Raises:
        ValueError: the budget does not cover two evaluations and the finalists, or a sparsity is out of range.
    """
    targets = tuple(sorted({*problem.targets, problem.sparsity}))
    logger.info("one search for sparsity %s", " ".join(f"{target:g}" for target in targets))
    return search_by_ppo(problem, targets, settings)
