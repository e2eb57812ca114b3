"""`ppo-paper`: the paper's own search: Algorithm 1 as printed, its network, and both curricula (docs/paper.md)."""

from __future__ import annotations

from dataclasses import replace

from ffprune_env.budget.allocation import Allocation
from ffprune_env.methods.ppo import ppo
from ffprune_env.search.presets import search_settings
from ffprune_env.search.problem import Problem, StartName
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.settings import SearchSettings

#: How far the lowest rate is below what is kept in the mean, at the least: with less, nearly all units end there.
ROOM = 0.2
#: The search of ``--preset paper``. Ranking, calibration and windows are the comparison's, the same for all methods.
PAPER: SearchSettings = search_settings("paper")


def ppo_paper(problem: Problem, settings: SearchSettings = PAPER) -> Allocation:
    """Searches as the paper does, from nothing, for as many evaluations as the windows of the budget last.

    Args:
        problem: what to answer. Its bounds on rates do not count, those of the settings do: what nearly every unit ends
            at is part of the method: a_min of the settings, or of the search that is started from, or :data:`ROOM`
            below what is kept where that is less. Nor does its start count, unless it is what another search has
            learnt: then the curriculum goes on at the sparsity where that one ended.
        settings: of the search, less what is the problem's: see :func:`~ffprune_env.methods.ppo.ppo`.

    Raises:
        ValueError: as for :func:`~ffprune_env.methods.ppo.ppo`.

    Source:
        Sec. 2 of arXiv 2511.18977.
    """
    init: StartName | Policy = problem.init if isinstance(problem.init, Policy) else "none"
    a_min = float(init.meaning["a_min"]) if isinstance(init, Policy) else settings.a_min
    # Only the order of scores counts, which no bound changes.
    a_min = max(0.0, min(a_min, 1 - problem.sparsity - ROOM))
    if isinstance(init, Policy):
        learnt = min(1.0, max(init.targets) / problem.sparsity)
        settings = replace(settings, alpha_start=max(settings.alpha_start, learnt))
    return ppo(replace(problem, a_min=a_min, a_max=settings.a_max, init=init), settings)
