"""`ppo`: the policy-gradient search of FastForward Pruning, as ``train/ppo.py`` and every comparison run it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ffprune_env.allocation import Allocation, FloatArray, IntArray
from ffprune_env.budget import Mapping as Mapping_
from ffprune_env.budget import allocate, waterfill_scores
from ffprune_env.callbacks import Archive, ProgressiveSchedulingCallback, SampleCallback
from ffprune_env.env import PruneBanditEnv, Reward
from ffprune_env.evaluator import Evaluator
from ffprune_env.methods.even import ffn_only
from ffprune_env.methods.fisher import CURVE_TOKENS, fisher
from ffprune_env.methods.fisher_iterated import STEP_TOKENS, STEPS, fisher_iterated
from ffprune_env.methods.problem import Meter, Problem
from ffprune_env.pruning.backward import spread_windows
from ffprune_env.pruning.units import PruneUnit
from ffprune_env.saved_policy import read_policy
from ffprune_env.schedule import ProgressiveSchedule

logger = logging.getLogger(__name__)

_FARTHEST_MEAN = 0.8  # of an action, which lives in [-1, 1]

#: What a policy's mean can start from, by the name that ``--init`` uses.
STARTS: dict[str, Callable[[Problem], Allocation]] = {
    "ffn-only": lambda problem: ffn_only(problem.sparsity, problem.meter.units),
    "fisher": fisher,
    "fisher-iterated": fisher_iterated,
}


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search by PPO; the fields are flags of ``train/ppo.py``, with their help."""

    sparsity: float | tuple[float, ...] = 0.2
    """fraction of the prunable parameters to remove; of several one policy is trained over all, in turns"""
    samples: int = 4
    """N_max: windows of search text per evaluation at the end of the schedule"""
    final_samples: int = 16
    """windows of search text that the last candidates are compared on, if more than --samples"""
    mapping: Mapping_ = "waterfill"
    """scores to rates: waterfill (magnitudes count) or greedy (the paper's: only the order does)"""
    a_min: float = 0.2
    """lowest retention rate of a unit"""
    a_max: float = 1.0
    """highest retention rate of a unit"""

    timesteps: int = 384
    """evaluations of the search, rounded up to whole rollouts of --n-steps"""
    alpha_start: float = 0.5
    """where the schedule of sparsity and samples starts, as a fraction of its end"""
    k: float = 0.01
    """steepness of the schedule, for 1000 evaluations; rescaled to --timesteps"""
    t0: float = 500.0
    """middle of the schedule, for 1000 evaluations; rescaled to --timesteps"""
    ramp_sparsity: bool = True
    """let the schedule raise the sparsity; otherwise it is --sparsity from the start"""
    ramp_samples: bool = True
    """let the schedule raise the number of windows; otherwise it is --samples from the start"""

    learning_rate: float = 1e-3
    """of Adam"""
    n_steps: int = 8
    """evaluations per policy update"""
    n_epochs: int = 10
    """passes over them per update"""
    clip_range: float = 0.2
    """PPO's clipping of the probability ratio"""
    normalize_advantage: bool = True
    """scale the advantages of an update to a mean of 0 and a deviation of 1, whatever the size of the rewards"""
    init: str = "fisher-iterated"
    """where the policy's mean starts: fisher (from damage curves, a few backward passes), fisher-iterated (the same,
    improved step by step), ffn-only, none (equal scores, as in the paper), or runs/<other>, the policy of another run.
    With --mapping greedy it is none unless it is a run"""
    reward: Reward = "ppl"
    """what a step is rewarded with: ppl (PPL_dense / PPL) or kl (exp of minus the divergence from the dense model)"""
    log_std_init: float = -2.5
    """log standard deviation of the actions at the start; actions live in [-1, 1]"""
    action_scale: float = 3.0
    """what actions are multiplied by to give scores"""
    seed: int = 0
    """of the policy and its exploration"""
    finalists: int = 6
    """best samples that are measured again at the final sparsity, beside the start and the policy's mean; the better
    half of them on twice the windows, and so on up to --final-samples"""

    def meaning(self) -> dict[str, Any]:
        """What the scores of a policy depend on: another search can start from it if these are the same."""
        return {name: getattr(self, name) for name in ("mapping", "a_min", "a_max", "action_scale")}

    @property
    def targets(self) -> tuple[float, ...]:
        """The sparsities asked for, each once, ascending."""
        return tuple(sorted(set(self.sparsity))) if isinstance(self.sparsity, tuple) else (self.sparsity,)

    @property
    def target(self) -> float:
        """The sparsity asked for, the highest if there are several."""
        return self.targets[-1]

    @property
    def rollout(self) -> int:
        """Evaluations per policy update, no more than there are in all."""
        return min(self.n_steps, self.timesteps)

    @property
    def evaluations(self) -> int:
        """Evaluations of the search: whole rollouts."""
        return self.rollout * math.ceil(self.timesteps / self.rollout)

    def schedule(self) -> ProgressiveSchedule:
        """The curriculum of the search."""
        return ProgressiveSchedule(
            self.target,
            self.samples,
            self.evaluations,
            alpha_start=self.alpha_start,
            k=self.k,
            t0=self.t0,
            min_sparsity=1 - self.a_max,
            ramp_sparsity=self.ramp_sparsity,
            ramp_samples=self.ramp_samples,
            targets=self.targets,
            turn=self.rollout,
        )

    def windows(self) -> int:
        """Windows of search text that the search measures in all, its finalists included."""
        schedule = self.schedule()
        finals = sum(rivals * n for rivals, n in self.rounds(2 + self.finalists))
        return sum(schedule.samples(t) for t in range(self.evaluations)) + finals

    def rounds(self, candidates: int) -> list[tuple[int, int]]:
        """Successive halving of the finalists: how many are measured, on how many windows, round after round."""
        plan = [(candidates, self.samples)]
        while plan[-1][1] < self.final_samples and plan[-1][0] > 1:
            rivals, n = plan[-1]
            plan.append((max(2, rivals // 2) if rivals > 2 else rivals, min(2 * n, self.final_samples)))
        return plan


def ppo(problem: Problem, settings: SearchSettings | None = None) -> Allocation:
    """Searches by PPO for as many evaluations as the windows of the budget last.

    Args:
        problem: what to answer.
        settings: of the search; sparsity, samples, bounds, seed and timesteps are the problem's.

    Raises:
        ValueError: the budget does not cover two evaluations and the finalists, or the sparsity is out of range.
    """
    meter = problem.meter
    settings = cheap_enough(settings or SearchSettings(), problem)
    meter.spend(start_cost(settings, problem))
    settings = affordable(
        replace(
            settings,
            sparsity=problem.sparsity,
            samples=meter.max_samples,
            final_samples=meter.all_samples,
            a_min=problem.a_min,
            a_max=problem.a_max,
            seed=problem.seed,
        ),
        meter.budget - meter.spent,
    )
    start = start_scores(settings, problem)
    policy = make_policy(settings, make_env(settings, meter), {problem.sparsity: start})
    archive = Archive(settings.target, settings.finalists)
    schedule, record = ProgressiveSchedulingCallback(settings.schedule()), SampleCallback(meter.units, archive)
    policy.learn(settings.evaluations, [schedule, record, _NoteMean(settings, meter)])
    _, chosen = choose(settings, meter.units, start, policy, archive, meter.measure)
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


def affordable(settings: SearchSettings, windows: int) -> SearchSettings:
    """The longest search, in whole rollouts, that measures no more than ``windows`` windows.

    Raises:
        ValueError: not even two evaluations and the finalists fit.
    """
    rollouts, too_many = 0, windows // settings.n_steps + 1  # an evaluation takes one window at the least
    while too_many - rollouts > 1:
        middle = (rollouts + too_many) // 2
        fits = replace(settings, timesteps=middle * settings.n_steps).windows() <= windows
        rollouts, too_many = (middle, too_many) if fits else (rollouts, middle)
    if rollouts:
        return replace(settings, timesteps=rollouts * settings.n_steps)
    if settings.final_samples > settings.samples:  # rather a search than a second look at what it found
        return affordable(replace(settings, final_samples=settings.samples), windows)
    shorter = [replace(settings, timesteps=timesteps) for timesteps in range(settings.n_steps, 1, -1)]
    for candidate in shorter:
        if candidate.windows() <= windows:
            return candidate
    raise ValueError(f"ppo needs a budget of at least {shorter[-1].windows()} windows, got {windows}")


def start_scores(settings: SearchSettings, problem: Problem) -> FloatArray:
    """The scores that the policy's mean starts from; where it cannot be reached, `ffn-only` or equal ones.

    Args:
        settings: of the search; ``init`` says where it starts.
        problem: of the same sparsity and bounds.

    Raises:
        ValueError: ``init`` is neither the name of a start nor a run with a policy that fits.
    """
    equal = np.zeros(len(problem.meter.units))
    if settings.init == "none":
        return equal
    if settings.init not in STARTS:
        saved = read_policy(settings.init, problem.meter.units, settings.meaning())
        return saved.mean(problem.sparsity) * settings.action_scale
    if settings.mapping == "greedy":
        logger.warning("greedy keeps the order of scores alone, which cannot say %s: starting equal", settings.init)
        return equal
    for init in dict.fromkeys((settings.init, "ffn-only")):
        try:
            rates = STARTS[init](problem).rates
        except ValueError as error:
            logger.warning("the search does not start from %s: %s", init, error)
        else:
            return waterfill_scores(rates, settings.a_min, settings.a_max)
    return equal


def start_cost(settings: SearchSettings, problem: Problem) -> int:
    """What the start costs, in windows of search text: a backward pass is counted as two forward passes."""
    texts = {"fisher": [CURVE_TOKENS], "fisher-iterated": [CURVE_TOKENS] + STEPS * [STEP_TOKENS]}.get(settings.init, [])
    if problem.windows is None or settings.mapping == "greedy":
        return 0
    return sum(3 * len(spread_windows(problem.windows, tokens)) for tokens in texts)


def cheap_enough(settings: SearchSettings, problem: Problem) -> SearchSettings:
    """The settings with a start that leaves half of the budget, and a rollout: theirs, or the next cheaper one."""
    meter = problem.meter
    rollout = replace(settings, samples=meter.max_samples, final_samples=meter.max_samples, timesteps=settings.n_steps)
    starts = list(reversed(STARTS))  # the last costs nothing
    for init in starts[starts.index(settings.init) :] if settings.init in STARTS else []:
        settings = replace(settings, init=init)
        cost = start_cost(settings, problem)
        if 2 * cost <= meter.budget and cost + rollout.windows() <= meter.budget:
            break
    return settings


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


def make_policy(settings: SearchSettings, env: PruneBanditEnv, starts: Mapping[float, FloatArray]) -> PPO:
    """PPO over the environment, with given scores as its mean, or with the network of the run that ``init`` names.

    Args:
        settings: of the search.
        env: its environment.
        starts: [N] scores for every target sparsity. The network starts linear in σ, so those of several targets are
            met as nearly as a straight line can.
    """
    policy = PPO(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        n_steps=settings.rollout,
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
    # SB3 starts with a mean of zero but for what the networks add, which is small. Actions outside the box are clipped
    # and teach nothing, so no mean starts near its edge.
    means = np.clip(np.stack(list(starts.values())) / settings.action_scale, -_FARTHEST_MEAN, _FARTHEST_MEAN)
    last = policy.policy.action_net
    assert isinstance(last, torch.nn.Linear)
    if len(starts) == 1:
        last.bias.data.copy_(torch.from_numpy(means[0]))
    else:
        with torch.no_grad():
            hidden = policy.policy.mlp_extractor.forward_actor(torch.tensor(list(starts), dtype=torch.float32)[:, None])
        slope_and_offset = np.linalg.lstsq(np.c_[hidden.double().numpy(), np.ones(len(starts))], means, rcond=1e-4)[0]
        last.weight.data.copy_(torch.from_numpy(slope_and_offset[:-1].T))
        last.bias.data.copy_(torch.from_numpy(slope_and_offset[-1]))
    if settings.init not in ("none", *STARTS):
        read_policy(settings.init, env.evaluator.units, settings.meaning()).load_into(policy)
    return policy


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
    """The best of the start, the policy's mean and the archive at S_final: its scores and its allocation.

    All are measured on N_max windows, the better half on twice as many, and so on (successive halving): the best of
    many on little text is the luckiest.

    Args:
        settings: of the search.
        units: the N units.
        start: the scores that the search started from.
        policy: as it was trained.
        archive: the best samples of the search.
        measure: perplexity with ``kept[i]`` groups of unit i, on so many windows.
    """
    scores = {"the start": start, "the policy's mean": mean_allocation(settings, units, policy)[0]}
    scores |= {f"archived sample {i}": sample.scores for i, sample in enumerate(archive.best(), 1)}
    candidates = {name: (x, _allocate(settings, units, x)) for name, x in scores.items()}
    # What comes first wins ties; candidates that keep the same are one.
    distinct = {x[1].kept.tobytes(): name for name, x in reversed(candidates.items())}
    ranked = [name for name in candidates if name in distinct.values()]
    for rivals, n_samples in settings.rounds(len(ranked)):
        logger.info("measuring %d finalists at sparsity %g on %d windows", rivals, settings.target, n_samples)
        ppls = {name: measure(candidates[name][1].kept, n_samples) for name in ranked[:rivals]}
        ranked = sorted(ppls, key=lambda name: ppls[name])
    logger.info("the best is %s", ranked[0])
    return candidates[ranked[0]]


def _allocate(settings: SearchSettings, units: Sequence[PruneUnit], scores: FloatArray) -> Allocation:
    return allocate(
        scores, settings.target, units, a_min=settings.a_min, a_max=settings.a_max, mapping=settings.mapping
    )
