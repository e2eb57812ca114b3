"""`ppo`: the policy-gradient search of FastForward Pruning, as ``train/ppo.py`` and every comparison run it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.even import ffn_only
from ffprune_env.budget.mapping import allocate, waterfill_scores
from ffprune_env.budget.units import PruneUnit
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.protocol import Evaluator
from ffprune_env.search.callbacks import ProgressiveSchedulingCallback, SampleCallback
from ffprune_env.search.problem import Meter, Problem
from ffprune_env.search.samples import Archive
from ffprune_env.search.saved_policy import read_policy
from ffprune_env.search.settings import SearchSettings, affordable
from ffprune_env.search.starts.start import STARTS, cheap_enough, start_cost, start_scores
from ffprune_env.search.workers import WorkersVecEnv

logger = logging.getLogger(__name__)

_FARTHEST_MEAN = 0.8  # of an action, which lives in [-1, 1]


def ppo(problem: Problem, settings: SearchSettings | None = None) -> Allocation:
    """Searches by PPO for as many evaluations as the windows of the budget last.

    Args:
        problem: what to answer.
        settings: of the search; sparsity, samples, bounds, seed and timesteps are the problem's.

    Raises:
        ValueError: the budget does not cover two evaluations and the finalists, or the sparsity is out of range.
    """
    meter = problem.meter
    if not meter.max_final_samples:
        raise ValueError("ppo ranks its last candidates on windows that no search saw: the evaluator needs finalists")
    settings = cheap_enough(settings or SearchSettings(), problem)
    settings = affordable(
        replace(
            settings,
            sparsity=problem.sparsity,
            samples=meter.max_samples,
            final_samples=meter.max_final_samples,
            a_min=problem.a_min,
            a_max=problem.a_max,
            seed=problem.seed,
        ),
        meter.budget - meter.spent - start_cost(settings, problem),
    )
    start = start_scores(settings, problem)
    policy = make_policy(settings, make_env(settings, meter), start)
    archive = Archive(settings.target, settings.finalists)
    schedule, record = ProgressiveSchedulingCallback(settings.schedule()), SampleCallback(meter.units, archive)
    policy.learn(settings.evaluations, [schedule, record, _NoteMean(settings, meter)])
    _, chosen = choose(settings, meter.units, start[problem.sparsity], policy, archive, meter.measure_final)
    meter.note(chosen)
    return chosen


class _NoteMean(BaseCallback):
    """Notes what the policy's mean keeps after every update.

    Args:
        settings: of the search.
        meter: where it is noted.
    """

    def __init__(self, settings: SearchSettings, meter: Meter) -> None:
        super().__init__()
        self.settings, self.meter = settings, meter

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, PPO)
        self.meter.note(mean_allocation(self.settings, self.meter.units, self.model)[1])


def make_env(settings: SearchSettings, evaluator: Evaluator) -> PruneBanditEnv:
    """The environment of the search."""
    return PruneBanditEnv(
        evaluator,
        settings.target,
        settings.samples,
        settings.a_min,
        settings.a_max,
        settings.mapping,
        settings.action_scale,
        settings.reward,
    )


def make_policy(
    settings: SearchSettings, env: PruneBanditEnv | WorkersVecEnv, starts: Mapping[float, FloatArray]
) -> PPO:
    """PPO over the environment, with given scores as its mean, or with the network of the run that ``init`` names.

    Args:
        settings: of the search.
        env: its environment, or one for every evaluation of a rollout.
        starts: [N] scores for every target sparsity, and for others that are known. The network starts linear in σ, so
            they are met as nearly as a straight line can; a single target is met, and the line only passes by the rest.
    """
    policy = PPO(
        "MlpPolicy",
        # Wrapped here, or SB3 adds a monitor that logs the mean reward of 100 episodes, whatever they were measured on.
        DummyVecEnv([lambda: env]) if isinstance(env, PruneBanditEnv) else env,
        learning_rate=settings.learning_rate,
        n_steps=settings.rollout if isinstance(env, PruneBanditEnv) else 1,
        batch_size=settings.rollout,
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
    means = start_means(settings, starts)
    if settings.init in STARTS:
        _draw_line(policy, means)
        if len(settings.targets) == 1:
            _move_to(policy, {settings.target: means[settings.target]})
    elif settings.init != "none":  # where SB3 starts with a mean of nearly zero
        read_policy(settings.init, env.evaluator.units, settings.meaning()).load_into(policy)
        _move_to(policy, {target: means[target] for target in settings.targets})
    return policy


def start_means(settings: SearchSettings, starts: Mapping[float, FloatArray]) -> dict[float, FloatArray]:
    """Mean actions that stand for scores: not near the edge of the box, where clipped actions teach nothing."""
    return {at: np.clip(x / settings.action_scale, -_FARTHEST_MEAN, _FARTHEST_MEAN) for at, x in starts.items()}


def _draw_line(policy: PPO, means: Mapping[float, FloatArray]) -> None:
    """Makes the policy's mean the straight line in σ that passes nearest to the given ones."""
    last, hidden = _last_layer(policy, means)
    inputs = np.c_[hidden, np.ones(len(hidden))]
    slope_and_offset = np.linalg.lstsq(inputs, np.stack(list(means.values())), rcond=1e-4)[0]
    last.weight.data.copy_(torch.from_numpy(slope_and_offset[:-1].T))
    last.bias.data.copy_(torch.from_numpy(slope_and_offset[-1]))


def _move_to(policy: PPO, means: Mapping[float, FloatArray]) -> None:
    """Shifts the policy's mean by a constant, so that on the average it is the given ones."""
    last, hidden = _last_layer(policy, means)
    now = hidden @ last.weight.detach().double().numpy().T
    last.bias.data.copy_(torch.from_numpy((np.stack(list(means.values())) - now).mean(axis=0)))


def _last_layer(policy: PPO, sparsities: Iterable[float]) -> tuple[torch.nn.Linear, FloatArray]:
    """The layer that the mean comes from, and what it sees at every sparsity: linear in σ while no layer has a bias."""
    last = policy.policy.action_net
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        hidden = policy.policy.mlp_extractor.forward_actor(torch.tensor(list(sparsities), dtype=torch.float32)[:, None])
    return last, hidden.double().numpy()


def mean_allocation(settings: SearchSettings, units: Sequence[PruneUnit], policy: PPO) -> tuple[FloatArray, Allocation]:
    """The scores of the policy's mean at the final sparsity, and what they are mapped to."""
    mean, _ = policy.predict(np.array([settings.target], dtype=np.float32), deterministic=True)
    scores = mean.astype(np.float64) * settings.action_scale
    return scores, _allocate(settings, units, scores)


def choose(
    settings: SearchSettings,
    units: Sequence[PruneUnit],
    start: FloatArray,
    policy: PPO,
    archive: Archive,
    measure: Callable[[IntArray, int], float],
) -> tuple[FloatArray, Allocation]:
    """The best of the start, `ffn-only`, the policy's mean and the archive at S_final: its scores and its allocation.

    All are measured on twice N_max windows, the better half on twice as many, and so on (successive halving). Samples
    that were the best of many are lucky on the windows that they were found on, and so is the start on those of its
    curves: what they are ranked by is text that neither saw.

    Args:
        settings: of the search.
        units: the N units.
        start: the scores that the search started from.
        policy: as it was trained.
        archive: the best samples of the search.
        measure: perplexity with ``kept[i]`` groups of unit i, on so many windows for finalists.
    """
    scores = {"the start": start, "the policy's mean": mean_allocation(settings, units, policy)[0]}
    if settings.mapping == "waterfill":
        # The best of the simple answers, and often hard to beat: a search should never end behind it.
        with suppress(ValueError):  # that attention stays whole is not always possible
            rates = ffn_only(settings.target, units).rates
            scores["ffn-only"] = waterfill_scores(rates, settings.a_min, settings.a_max)
    scores |= {f"archived sample {i}": sample.scores for i, sample in enumerate(archive.best(), 1)}
    candidates = {name: (x, _allocate(settings, units, x)) for name, x in scores.items()}
    # What comes first wins ties; candidates that keep the same are one.
    distinct = {x[1].kept.tobytes(): name for name, x in reversed(candidates.items())}
    ranked = [name for name in candidates if name in distinct.values()]
    for rivals, n_samples in settings.rounds(len(ranked)):
        text = f"{n_samples} window{'s' if n_samples > 1 else ''} that {_who_saw(settings)}"
        logger.info("measuring %d finalists at sparsity %g on %s", rivals, settings.target, text)
        ppls = {name: measure(candidates[name][1].kept, n_samples) for name in ranked[:rivals]}
        ranked = sorted(ppls, key=lambda name: ppls[name])
    logger.info("the best is %s", ranked[0])
    return candidates[ranked[0]]


def _who_saw(settings: SearchSettings) -> str:
    """That nobody saw the finalists' windows, as far as that is known: of another run other windows were shared out."""
    if settings.init in ("none", *STARTS):
        return "neither start nor search saw"
    return f"neither this search nor its start saw, whatever {settings.init} did"


def _allocate(settings: SearchSettings, units: Sequence[PruneUnit], scores: FloatArray) -> Allocation:
    return allocate(
        scores, settings.target, units, a_min=settings.a_min, a_max=settings.a_max, mapping=settings.mapping
    )
