"""The way from an allocation to the mean of a policy, and back.

    rates ─▶ scores ─▶ action ─▶ last layer of the policy    :func:`scores_of`, :func:`mean_actions`, :func:`write_mean`
    allocation ◀─ scores ◀─ action ◀─ mean of the policy     :func:`mean_scores`, :func:`mean_allocation`

Two things are lost on the way. Rates at a bound become scores a little inside of it, and actions are clipped to 0.8 of
their box, near whose edge clipped samples teach nothing. Between the sparsities that a start knows the mean is a
straight line. ``tests/search/test_mean.py`` says how near a policy comes to the allocations that it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.even import ffn_only
from ffprune_env.budget.mapping import allocate
from ffprune_env.budget.units import PruneUnit
from ffprune_env.budget.waterfill import waterfill_scores

if TYPE_CHECKING:
    from stable_baselines3 import PPO

    from ffprune_env.search.settings import SearchSettings

_ROUNDING = 1e-9
_FARTHEST = 0.8  # of the way from the middle of the box to its edge


def scores_of(allocation: Allocation, a_min: float, a_max: float) -> FloatArray:
    """Scores that `waterfill` maps to the rates of an allocation: [N]."""
    return waterfill_scores(allocation.rates, a_min, a_max)


def ffn_only_scores(sparsity: float, units: Sequence[PruneUnit], a_min: float, a_max: float) -> FloatArray:
    """Scores that `waterfill` maps to `ffn-only`: [N].

    Args:
        sparsity: target.
        units: the N units.
        a_min: lowest retention rate.
        a_max: highest retention rate.

    Raises:
        ValueError: `ffn-only` does not reach the sparsity, or not within the bounds.
    """
    found = ffn_only(sparsity, units)
    if found.rates.min() < a_min - _ROUNDING or found.rates.max() > a_max + _ROUNDING:
        kept = f"{found.rates.min():.3g} to {found.rates.max():.3g}"
        raise ValueError(
            f"ffn-only keeps {kept} of its units at sparsity {sparsity:g}, which is beyond the bounds "
            f"on rates, {a_min:g} to {a_max:g}"
        )
    return scores_of(found, a_min, a_max)


def mean_actions(
    scores: Mapping[float, FloatArray], action_scale: float, action_bound: float = 1.0
) -> dict[float, FloatArray]:
    """Mean actions that stand for scores: both [N], by sparsity."""
    farthest = _FARTHEST * action_bound
    return {at: np.clip(x / action_scale, -farthest, farthest) for at, x in scores.items()}


def write_mean(ppo: PPO, actions: Sequence[FloatArray], tent: float) -> None:
    """Gives a new policy over knots its mean.

    Args:
        ppo: whose policy's last layer sees :class:`~ffprune_env.search.policy.SparsityFeatures`.
        actions: [N] mean action at every knot.
        tent: height of the tents that it sees.
    """
    last = ppo.policy.action_net
    assert isinstance(last, torch.nn.Linear)
    last.weight.data.zero_()
    last.bias.data.zero_()
    last.weight.data[:, 1:] = torch.from_numpy(np.stack(actions, axis=1)) / tent


def write_bias(ppo: PPO, actions: FloatArray) -> None:
    """Moves the mean of a new policy, which is nearly zero, to given actions: [N]."""
    last = ppo.policy.action_net
    assert isinstance(last, torch.nn.Linear)
    last.bias.data.copy_(torch.from_numpy(actions))


def mean_scores(ppo: PPO, sparsity: float, action_scale: float) -> FloatArray:
    """The scores of a policy's mean at a sparsity: [N]."""
    mean, _ = ppo.predict(np.array([sparsity], dtype=np.float32), deterministic=True)
    return mean.astype(np.float64) * action_scale


def mean_allocation(settings: SearchSettings, units: Sequence[PruneUnit], ppo: PPO) -> Allocation:
    """What the scores of the policy's mean at the final sparsity are mapped to."""
    scores = mean_scores(ppo, settings.target, settings.action_scale)
    return allocate(scores, settings.target, units, **settings.bounds, mapping=settings.mapping)
