"""The policy of a search: Stable-Baselines3's PPO, over the environment that the settings describe.

Its mean is start(σ) + b + c · u, where u is the place of σ in its range: what the start knows at every σ, and what was
learned, which goes to all σ at once. That is one linear layer over :class:`SparsityFeatures`. All units share one
deviation, which is learned too: :class:`OneDeviation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import DummyVecEnv

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.protocol import Evaluator
from ffprune_env.search.mean import write_bias, write_mean
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.workers import WorkersVecEnv

#: Height of a tent. Adam moves every weight by about as much. A tent is tiny, so its weight hardly moves the mean: the
#: start stays, and learning goes to bias and slope, which all σ share. A power of two, which rounds nothing.
TENT = 2.0**-10
# Value of the slope feature at the ends of the range: there the slope moves the mean half as much as the bias does.
_SLOPE = 0.5
# Without momentum: it would go on with what eight noisy measurements said long after others said otherwise.
_ADAM = {"betas": (0.0, 0.99), "eps": 1e-5}


class SparsityFeatures(BaseFeaturesExtractor):
    """What a policy sees of σ: where it is in its range, and how near it is to every knot.

    The first feature is σ, moved to [-1/2, 1/2] over the knots. The others are tents: ``TENT`` high at their own knot,
    0 at the next ones, a straight line between, and outside of the range as at its ends. A last layer over them is any
    function that is linear from knot to knot: it can be given what is known at every knot, and what it learns at one σ
    it passes on to all, by its bias and its slope.

    Args:
        observation_space: of the environment: σ alone.
        knots: sparsities, ascending, at least one.
    """

    def __init__(self, observation_space: spaces.Box, knots: tuple[float, ...]) -> None:
        super().__init__(observation_space, 1 + len(knots))
        self.knots: torch.Tensor
        self.register_buffer("knots", torch.tensor(knots, dtype=torch.float32))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Features of sparsities: float32 [batch, 1] to [batch, 1 + knots]."""
        knots = self.knots
        sparsity = observations.clamp(knots[0], knots[-1])
        middle, half = (knots[-1] + knots[0]) / 2, (knots[-1] - knots[0]) / 2
        if len(knots) == 1:
            return torch.cat([torch.zeros_like(sparsity), torch.full_like(sparsity, TENT)], 1)
        gaps = torch.diff(knots)
        first, last = torch.full((1,), math.inf), torch.full((1,), math.inf)
        up = (sparsity - knots) / torch.cat([first.to(gaps), gaps]) + 1
        down = (knots - sparsity) / torch.cat([gaps, last.to(gaps)]) + 1
        slope, tents = _SLOPE * (sparsity - middle) / half, TENT * torch.minimum(up, down).clamp(0, 1)
        return torch.cat([slope, tents], 1)


class OneDeviation(ActorCriticPolicy):
    """A policy whose actions have one deviation for all units, as a parameter of one number.

    What a rollout says of the deviation of one unit is mostly noise; of all together it says enough. Where measurements
    are exact it falls as the mean comes near the best. Where they are noisy it falls less: candidates must differ by
    more than they are measured wrong. The arguments are those of Stable-Baselines3's class.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.log_std = torch.nn.Parameter(torch.full((1,), float(self.log_std_init)))
        optimizer: Any = self.optimizer_class  # the base class of optimizers does not say what all of them take
        self.optimizer = optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


def make_env(settings: SearchSettings, evaluator: Evaluator) -> PruneBanditEnv:
    """The environment of a search."""
    return PruneBanditEnv(
        evaluator,
        settings.target,
        settings.search_windows,
        settings.lowest,
        settings.a_max,
        settings.mapping,
        settings.action_scale,
        settings.reward,
        settings.action_bound,
    )


def make_policy(
    settings: SearchSettings, env: PruneBanditEnv | WorkersVecEnv, actions: Mapping[float, FloatArray]
) -> PPO:
    """PPO whose mean starts at given actions; of ``mlp``, at those of the highest target, nearly, whatever σ is.

    Args:
        settings: of the search.
        env: its environment, or one for every evaluation of a rollout.
        actions: [N] mean actions by sparsity, the targets among them: the knots of the policy.
    """
    knots = tuple(sorted(actions))
    ppo = PPO(
        ActorCriticPolicy if settings.network == "mlp" else OneDeviation,
        # Wrapped here, or SB3 adds a monitor that logs the mean reward of 100 episodes, whatever they were measured on.
        DummyVecEnv([lambda: env]) if isinstance(env, PruneBanditEnv) else env,
        learning_rate=settings.rate_of_learning,
        n_steps=settings.per_update if isinstance(env, PruneBanditEnv) else 1,
        batch_size=settings.per_update,
        n_epochs=settings.n_epochs,
        clip_range=settings.clip_range,
        normalize_advantage=settings.normalize_advantage,
        # gamma and gae_lambda do nothing in episodes of one step: the advantage is r - V(σ).
        policy_kwargs={"log_std_init": settings.log_std_init, **_network(settings, knots)},
        seed=settings.seed,
        device="cpu",  # the policy is tiny; the model may be anywhere
    )
    if settings.network == "knots":
        write_mean(ppo, [actions[at] for at in knots], TENT)
    else:
        write_bias(ppo, actions[settings.target])
    return ppo


def _network(settings: SearchSettings, knots: tuple[float, ...]) -> dict[str, Any]:
    if settings.network == "mlp":
        return {"net_arch": [256, 128], "activation_fn": torch.nn.ReLU}
    return {
        "net_arch": [],
        "features_extractor_class": SparsityFeatures,
        "features_extractor_kwargs": {"knots": knots},
        "optimizer_kwargs": _ADAM,
    }
