"""One search, from its environment to its answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.ledger import Ledger
from ffprune_env.evaluators.objectives.reward import PERPLEXITY, RewardMix
from ffprune_env.evaluators.protocol import SearchEvaluator
from ffprune_env.lm.phases import phase
from ffprune_env.search.finalists import Answer, candidates, choose, choose_everywhere, functions_of
from ffprune_env.search.mean import mean_actions, mean_scores
from ffprune_env.search.noted import Note, unnoted
from ffprune_env.search.policy import make_env, make_policy
from ffprune_env.search.samples import Archive, Sample
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.schedule import ProgressiveSchedule
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.start import Start, StartScores
from ffprune_env.search.training import onlookers, train
from ffprune_env.search.workers import WorkersVecEnv


@dataclass(frozen=True)
class Outcome:
    """What a search leaves.

    Attributes:
        policy: Stable-Baselines3's PPO, with the policy as it was trained.
        samples: every evaluation, in order.
        answers: what was chosen, by target sparsity.
        learned: what it says of any sparsity: the function of σ that was chosen; around a sample, the policy's mean.
        schedule: what was asked for when.
        seconds: wall time of the evaluations and of the training.
        start: name of what it started from.
        windows: windows of search text that it measured, its finalists included, whatever was remembered.
        rewarded: what its losses are of.
    """

    policy: PPO
    samples: list[Sample]
    answers: Mapping[float, Answer]
    learned: Policy
    schedule: ProgressiveSchedule
    seconds: float
    start: str
    windows: int
    rewarded: RewardMix = PERPLEXITY

    def samples_for(self, target: float) -> list[Sample]:
        """Those of one target."""
        return [sample for sample in self.samples if self.schedule.counts_for(sample.step) == target]

    def told(self) -> str:
        """What the search added to its start, and what it cost: one line, over all targets."""
        added = self.answers[max(self.answers)].added
        assert added is not None
        return added.told(self.start, self.windows, self.seconds if self.samples else None, self.rewarded)


def run_search(
    settings: SearchSettings,
    evaluator: SearchEvaluator,
    start: Start,
    scores: StartScores,
    *,
    env: PruneBanditEnv | WorkersVecEnv | None = None,
    listeners: Sequence[Callable[[Sample], None]] = (),
    callbacks: Sequence[BaseCallback] = (),
    logger: Logger | None = None,
    simple: bool = True,
    note: Note = unnoted,
    ledger: Ledger | None = None,
) -> Outcome:
    """Trains a policy to prune a model at one or several sparsities, and chooses what it found.

    Args:
        settings: of the search.
        evaluator: measures the last candidates, and everything else unless ``env`` is given.
        start: where the policy's mean starts.
        scores: what ``start.scores`` gave, now or in the process that this one goes on for.
        env: environments that measure in other processes; None measures with the evaluator.
        listeners: called with every sample in turn: a log file, a progress bar.
        callbacks: Stable-Baselines3's; one that returns False ends the search early, and what there is then is what is
            chosen from.
        logger: where the policy logs to; where there is none, nothing is measured for it.
        simple: whether `ffn-only` is among the last candidates.
        note: called with what is measured beside the candidates, so that it can be kept.
        ledger: is told what the search and its finalists cost.

    Raises:
        ValueError: the settings ask for what the units or the evaluator cannot give.
    """
    settings = within_text(settings, evaluator)
    units, schedule = evaluator.units, settings.schedule()
    actions = mean_actions(scores.everywhere, settings.action_scale, settings.action_bound)
    ppo = make_policy(settings, env or make_env(settings, evaluator), actions)
    if logger is not None:
        ppo.set_logger(logger)
    looking = onlookers(settings, evaluator, learned(settings, units, scores.everywhere), note, logger is not None)
    ledger, devices = ledger or Ledger(), evaluator.devices if isinstance(evaluator, LMEvaluator) else 1
    workers = devices
    if isinstance(env, WorkersVecEnv):
        workers = len(env.workers.actors)
        env.beside = None if looking.fresh is None else looking.beside.kept
    samples: list[Sample] = []
    archive = Archive(settings.target, settings.finalists)
    began = time.perf_counter()
    if settings.total:
        with ledger.part("search", workers):
            train(settings, ppo, looking, (samples.append, archive, *listeners), callbacks)
    seconds = time.perf_counter() - began
    windows = sum(sample.n_samples for sample in samples) + looking.spent(samples)
    means = dict(scores.everywhere)
    if samples:
        means = {at: mean_scores(ppo, at, settings.action_scale) for at in means}
    with ledger.part("finalists", devices):
        answers, table = last_look(settings, evaluator, start, scores, means, archive, simple)
    return Outcome(
        policy=ppo,
        samples=samples,
        answers=answers,
        learned=learned(settings, units, table),
        schedule=schedule,
        seconds=seconds,
        start=start.name,
        windows=windows + sum(answer.spent for answer in answers.values()),
        rewarded=settings.rewarded,
    )


def within_text(settings: SearchSettings, evaluator: SearchEvaluator) -> SearchSettings:
    """Settings whose last look takes no more windows than a short text left for it.

    Args:
        settings: of the search.
        evaluator: has the windows.

    Raises:
        ValueError: it has none.
    """
    there = evaluator.max_final_samples
    if not there:
        raise ValueError("a search ranks its last candidates on windows of their own, and the evaluator has none")
    return replace(settings, final_windows=min(settings.final_windows, there))


def last_look(
    settings: SearchSettings,
    evaluator: SearchEvaluator,
    start: Start,
    scores: StartScores,
    means: Mapping[float, FloatArray],
    archive: Archive,
    simple: bool,
) -> tuple[dict[float, Answer], Mapping[float, FloatArray]]:
    """Chooses what is the best: at one sparsity of a few candidates, over several of a few functions of σ.

    Args:
        settings: of the search.
        evaluator: measures.
        start: what the search started from.
        scores: what that gave.
        means: [N] scores of the policy's mean, by sparsity.
        archive: the best samples, which one sparsity is chosen from.
        simple: whether `ffn-only` is among the candidates.

    Returns:
        The answers by target, and [N] scores by sparsity for all others.
    """
    units = evaluator.units
    functions = functions_of(settings, units, scores.everywhere, means, simple)
    if len(settings.targets) > 1:
        with phase("finalists", f"functions of sparsity at {len(settings.targets)} sparsities"):
            at_targets = {name: {at: x[at] for at in settings.targets} for name, x in functions.items()}
            chosen = choose_everywhere(settings, units, at_targets, evaluator.final_losses, start.unseen)
        return chosen, functions[chosen[settings.target].name]
    target = settings.target
    with phase("finalists", f"sparsity {target:g}, {archive.seen or 'no'} samples to choose from"):
        final = candidates(settings, units, scores.targets[target], means[target], archive, simple)
        answer = choose(settings, units, final, evaluator.final_losses, start.unseen)
    # Of a sample, or of `ffn-only` where it does not reach all sparsities around, nothing is known but at its own.
    return {target: answer}, {**functions.get(answer.name, means), target: answer.scores}


def learned(settings: SearchSettings, units: Sequence[PruneUnit], table: Mapping[float, FloatArray]) -> Policy:
    """What a search leaves for other sparsities and other searches.

    Args:
        settings: of the search.
        units: the N units.
        table: [N] scores by sparsity.
    """
    knots = sorted(table)
    scores = np.stack([table[at] for at in knots])
    return Policy(np.array(knots), scores, tuple(units), settings.meaning(), settings.targets)
