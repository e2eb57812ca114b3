"""The policy of a search: Stable-Baselines3's PPO, over the environment that the settings describe."""

from __future__ import annotations

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.protocol import Evaluator
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.workers import WorkersVecEnv


def make_env(settings: SearchSettings, evaluator: Evaluator) -> PruneBanditEnv:
    """The environment of a search."""
    return PruneBanditEnv(
        evaluator,
        settings.target,
        settings.search_windows,
        settings.a_min,
        settings.a_max,
        settings.mapping,
        settings.action_scale,
        settings.reward,
    )


def make_policy(settings: SearchSettings, env: PruneBanditEnv | WorkersVecEnv) -> PPO:
    """PPO with a mean of nearly zero.

    Args:
        settings: of the search.
        env: its environment, or one for every evaluation of a rollout.
    """
    return PPO(
        "MlpPolicy",
        # Wrapped here, or SB3 adds a monitor that logs the mean reward of 100 episodes, whatever they were measured on.
        DummyVecEnv([lambda: env]) if isinstance(env, PruneBanditEnv) else env,
        learning_rate=settings.learning_rate,
        n_steps=settings.per_update if isinstance(env, PruneBanditEnv) else 1,
        batch_size=settings.per_update,
        n_epochs=settings.n_epochs,
        clip_range=settings.clip_range,
        normalize_advantage=settings.normalize_advantage,
        # gamma and gae_lambda do nothing in episodes of one step: the advantage is r - V(σ).
        policy_kwargs={
            "net_arch": [256, 128],
            "activation_fn": torch.nn.ReLU,
            "log_std_init": settings.log_std_init,
        },
        seed=settings.seed,
        device="cpu",  # the policy is tiny; the model may be anywhere
    )
