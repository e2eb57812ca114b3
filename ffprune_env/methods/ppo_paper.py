"""`ppo-paper`: the paper's own search: Algorithm 1 as printed, its network, and both curricula (docs/paper.md)."""

from __future__ import annotations

from dataclasses import replace

from ffprune_env.budget.allocation import Allocation
from ffprune_env.methods.ppo import ppo
from ffprune_env.search.presets import search_settings
from ffprune_env.search.problem import Problem, StartName
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.settings import SearchSettings

#: The search of ``--preset paper``. Ranking, calibration and windows are the comparison's, the same for all methods.
PAPER: SearchSettings = search_settings("paper")


def ppo_paper(problem: Problem, settings: SearchSettings = PAPER) -> Allocation:
    """Searches as the paper does, from nothing, for as many evaluations as the windows of the budget last.

    Args:
        problem: what to answer. Its bounds on rates do not count, those of the settings do: what nearly every unit ends
            at is part of the method. Nor does its start count, unless it is what another search has learnt: then the
            lowest rate is no higher than it was there, and the curriculum goes on at the sparsity where that one
            ended.
        settings: of the search, less what is the problem's: see :func:`~ffprune_env.methods.ppo.ppo`.

    Raises:
        ValueError: as for :func:`~ffprune_env.methods.ppo.ppo`.

    Source:
        Sec. 2 of arXiv 2511.18977.
    """
    init: StartName | Policy = problem.init if isinstance(problem.init, Policy) else "none"
    a_min = replace(settings, sparsity=problem.sparsity).lowest
    if isinstance(init, Policy):
        a_min = min(a_min, float(init.meaning["a_min"]))  # only the order of scores counts, which no bound changes
        learnt = min(1.0, max(init.targets) / problem.sparsity)
        settings = replace(settings, alpha_start=max(settings.alpha_start, learnt))
    return ppo(replace(problem, a_min=a_min, a_max=settings.a_max, init=init), settings)
