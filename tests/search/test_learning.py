"""PPO on a bandit whose optimum is known: it must find it, in seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import ffprune_env as ff
from ffprune_env.search.callbacks import ProgressiveSchedulingCallback, SampleCallback
from ffprune_env.search.samples import Archive


def best_damage(evaluator, sparsity):
    """Least total damage at a sparsity: the curves are convex, so the cheapest group goes first (by parameters)."""
    steps = []
    for i, (unit, curve) in enumerate(zip(evaluator.units, evaluator.curves, strict=True)):
        fewest = int(np.ceil(0.2 * unit.n_groups))
        for k in range(unit.n_groups, fewest, -1):
            steps.append(((curve[k - 1] - curve[k]) / unit.group_params, i, curve[k - 1] - curve[k], unit.group_params))
    left = sparsity * sum(unit.n_params for unit in evaluator.units)
    damage = 0.0
    for _, _, cost, params in sorted(steps):
        if left <= 0:
            return damage
        damage, left = damage + cost * min(1.0, left / params), left - params
    raise AssertionError("unreachable sparsity")


def test_the_optimum_of_the_surrogate_is_a_lower_bound():
    evaluator = ff.SurrogateEvaluator.synthetic(n_layers=4)
    best = evaluator.dense(1) * np.exp(best_damage(evaluator, 0.3))
    rng = np.random.default_rng(0)
    for _ in range(200):
        kept = ff.allocate(rng.normal(size=8), 0.3, evaluator.units, mapping="waterfill").kept
        assert evaluator.measure(kept, 1) > best


@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_comes_within_ten_percent_of_the_optimum(seed):
    evaluator = ff.SurrogateEvaluator.synthetic(n_layers=4, seed=seed)
    sparsity = 0.4
    best = evaluator.dense(1) * np.exp(best_damage(evaluator, sparsity))
    uniform = evaluator.measure(ff.uniform(sparsity, evaluator.units).kept, 1)
    policy = PPO(
        "MlpPolicy",
        ff.PruneBanditEnv(evaluator, sparsity),
        learning_rate=1e-3,
        n_steps=8,
        batch_size=8,
        policy_kwargs={"net_arch": [256, 128], "activation_fn": torch.nn.ReLU, "log_std_init": -2.0},
        seed=seed,
        device="cpu",
    )
    archive = Archive(sparsity)
    schedule = ff.ProgressiveSchedule(sparsity, evaluator.max_samples, 768)
    policy.learn(768, [ProgressiveSchedulingCallback(schedule), SampleCallback(archive)])
    action, _ = policy.predict(np.array([sparsity], dtype=np.float32), deterministic=True)
    found = evaluator.measure(ff.allocate(3.0 * action, sparsity, evaluator.units, mapping="waterfill").kept, 1)
    assert found < 1.1 * best
    assert found < 0.9 * uniform  # and there was something to learn
