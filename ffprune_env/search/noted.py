"""Measurements that are noted: told to somebody who keeps them for a search that is cut off."""

from __future__ import annotations

import math
from collections.abc import Callable

from ffprune_env.budget.arrays import IntArray
from ffprune_env.env import measure_reward
from ffprune_env.evaluators.objectives.reward import RewardKind
from ffprune_env.evaluators.protocol import SearchEvaluator, Windows

#: Takes what was measured: groups kept, windows, perplexity, divergence.
Note = Callable[[IntArray, Windows, float, float | None], None]


def unnoted(kept: IntArray, windows: Windows, ppl: float, kl: float | None) -> None:
    """For who keeps nothing."""


def reward_noted(
    evaluator: SearchEvaluator, kept: IntArray, windows: Windows, kind: RewardKind, note: Note
) -> tuple[float, dict[str, float]]:
    """What an allocation is rewarded with, noted unless the evaluator knew what it was measured as.

    Args:
        evaluator: measures.
        kept: int [N], groups kept.
        windows: to measure on.
        kind: of reward.
        note: what is to be told.

    Returns:
        The reward and what was measured, as :func:`~ffprune_env.env.measure_reward` has it.
    """
    known = evaluator.remembers(kept, windows, kind == "kl")
    reward, measured = measure_reward(evaluator, kept, windows, kind)
    if not known:
        note(kept, windows, measured["ppl"], measured.get("kl"))
    return reward, measured


def loss_noted(evaluator: SearchEvaluator, kept: IntArray, windows: Windows, kind: RewardKind, note: Note) -> float:
    """What a search minimizes, in nats, noted unless the evaluator knew it; the arguments are those above.

    Returns:
        The divergence from the dense model if ``kl`` is rewarded, otherwise ln PPL, or what stands in its place.
    """
    known, kl = evaluator.remembers(kept, windows, kind == "kl"), None
    if kind == "kl":
        ppl, kl = evaluator.compare(kept, windows)
    else:
        ppl = evaluator.measure(kept, windows)
    if not known:
        note(kept, windows, ppl, kl)
    return math.log(ppl) if kl is None else kl
