"""`ppo-from-nothing`: `ppo` from equal scores, wherever other searches start."""

from __future__ import annotations

from dataclasses import replace

from ffprune_env.budget.allocation import Allocation
from ffprune_env.methods.ppo import ppo
from ffprune_env.search.problem import Problem
from ffprune_env.search.settings import SearchSettings


def ppo_from_nothing(problem: Problem, settings: SearchSettings | None = None) -> Allocation:
    """Searches by PPO from equal scores; it is not given `ffn-only` at its end either.

    Args:
        problem: what to answer; where it says that searches start does not count.
        settings: as for :func:`~ffprune_env.methods.ppo.ppo`.

    Raises:
        ValueError: as for :func:`~ffprune_env.methods.ppo.ppo`.
    """
    return ppo(replace(problem, init="none"), settings)
