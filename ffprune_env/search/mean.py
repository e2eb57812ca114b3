"""The way from an allocation to the mean of a policy, and back.

    rates ─▶ scores ─▶ action ─▶ last layer of the network    :func:`scores_of`, :func:`mean_actions`, :func:`draw_line`
    allocation ◀─ scores ◀─ action ◀─ mean of the network     :func:`mean_scores`, :func:`mean_allocation`

Three things are lost on the way. Rates at a bound become scores a little inside of it; actions are clipped to 0.8 of
their box, near whose edge clipped samples teach nothing; and over several sparsities the network starts as a straight
line in σ. ``tests/search/test_mean.py`` says how near a policy comes to the allocation that it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.mapping import allocate, waterfill_scores
from ffprune_env.budget.units import PruneUnit

if TYPE_CHECKING:
    from stable_baselines3 import PPO

    from ffprune_env.search.settings import SearchSettings
    from ffprune_env.search.starts.start import StartScores

_FARTHEST = 0.8  # of an action, which lives in [-1, 1]


def scores_of(allocation: Allocation, a_min: float, a_max: float) -> FloatArray:
    """Scores that `waterfill` maps to the rates of an allocation: [N]."""
    return waterfill_scores(allocation.rates, a_min, a_max)


def mean_actions(scores: StartScores, action_scale: float) -> StartScores:
    """Mean actions that stand for scores."""
    return scores.map(lambda x: np.clip(x / action_scale, -_FARTHEST, _FARTHEST))


def draw_line(policy: PPO, actions: Mapping[float, FloatArray]) -> None:
    """Makes the mean of a new policy the straight line in σ that passes nearest to given actions.

    Args:
        policy: as Stable-Baselines3 makes it: without biases, so that its last layer sees what is linear in σ.
        actions: [N] by sparsity.
    """
    last, hidden = _last_layer(policy, actions)
    inputs = np.c_[hidden, np.ones(len(hidden))]
    slope_and_offset = np.linalg.lstsq(inputs, np.stack(list(actions.values())), rcond=1e-4)[0]
    last.weight.data.copy_(torch.from_numpy(slope_and_offset[:-1].T))
    last.bias.data.copy_(torch.from_numpy(slope_and_offset[-1]))


def shift_mean(policy: PPO, actions: Mapping[float, FloatArray]) -> None:
    """Shifts the mean by a constant, so that on the average it is that of given actions; of a single one it is met.

    Args:
        policy: any.
        actions: [N] by sparsity.
    """
    last, hidden = _last_layer(policy, actions)
    now = hidden @ last.weight.detach().double().numpy().T
    last.bias.data.copy_(torch.from_numpy((np.stack(list(actions.values())) - now).mean(axis=0)))


def mean_scores(policy: PPO, sparsity: float, action_scale: float) -> FloatArray:
    """The scores of a policy's mean at a sparsity: [N]."""
    mean, _ = policy.predict(np.array([sparsity], dtype=np.float32), deterministic=True)
    return mean.astype(np.float64) * action_scale


def mean_allocation(settings: SearchSettings, units: Sequence[PruneUnit], policy: PPO) -> Allocation:
    """What the scores of the policy's mean at the final sparsity are mapped to."""
    scores = mean_scores(policy, settings.target, settings.action_scale)
    return allocate(scores, settings.target, units, **settings.bounds, mapping=settings.mapping)


def _last_layer(policy: PPO, sparsities: Iterable[float]) -> tuple[torch.nn.Linear, FloatArray]:
    """The layer that the mean comes from, and what it sees at every sparsity."""
    last = policy.policy.action_net
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        hidden = policy.policy.mlp_extractor.forward_actor(torch.tensor(list(sparsities), dtype=torch.float32)[:, None])
    return last, hidden.double().numpy()
