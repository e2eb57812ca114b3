"""The training of a policy: who looks on, and one call of PPO's ``learn``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.protocol import SearchEvaluator
from ffprune_env.lm.phases import phase
from ffprune_env.search.callbacks import ProgressiveSchedulingCallback, SampleCallback
from ffprune_env.search.eval_callback import EvalCallback, rollouts_between_looks
from ffprune_env.search.fresh_windows import FreshWindows, StartBeside, log_and_count_beside
from ffprune_env.search.mean import mean_allocation
from ffprune_env.search.noted import Note
from ffprune_env.search.patience import PatienceCallback
from ffprune_env.search.samples import Sample, told
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.watch import Watch


@dataclass(frozen=True)
class Onlookers:
    """Who draws windows for a training and measures beside its candidates.

    Attributes:
        fresh: which windows every rollout is measured on; None: the first of search text.
        beside: measures the start on those that were drawn.
        watch: measures the policy's mean for the next two.
        eval_callback: logs what the mean is worth; None where nobody asked for that.
        patience_callback: ends a search that does not pay; None as above.
    """

    fresh: FreshWindows | None
    beside: StartBeside
    watch: Watch
    eval_callback: EvalCallback | None
    patience_callback: PatienceCallback | None

    def spent(self, samples: Sequence[Sample]) -> int:
        """Windows that were measured beside the candidates; logs those of the rollouts."""
        of_rollouts = 0 if self.fresh is None else log_and_count_beside(samples, self.beside.spent)
        return of_rollouts + self.watch.spent


def onlookers(
    settings: SearchSettings, evaluator: SearchEvaluator, started: Policy, note: Note, logged: bool
) -> Onlookers:
    """Makes them, as the settings ask for them.

    Args:
        settings: of the search.
        evaluator: measures.
        started: what the start says of every sparsity.
        note: called with what is measured beside the candidates.
        logged: whether the policy logs anywhere.

    Raises:
        ValueError: the settings ask for windows that the evaluator does not have.
    """
    kind, targets, per_update = settings.rewarded.kind, settings.targets, settings.per_update

    def of_start(sparsity: float) -> IntArray:
        return started.allocate(sparsity).kept

    def of_mean(ppo: PPO, target: float) -> IntArray:
        return mean_allocation(replace(settings, sparsity=target), evaluator.units, ppo).kept

    fresh = eval_callback = patience_callback = None
    watch = Watch(evaluator, note)
    if settings.draws and settings.total:
        fresh = FreshWindows(settings.schedule(), evaluator.pool, settings.seed)
    if logged and evaluator.watch and settings.total and settings.eval_every != 0:
        eval_callback = EvalCallback(rollouts_between_looks(settings), per_update, watch, targets, of_mean, kind)
    if settings.patience is not None and settings.total:
        watch.require_windows("patience")
        starts = {target: of_start(target) for target in targets}
        looks = (settings.patience, settings.look_every, per_update)
        patience_callback = PatienceCallback(*looks, watch, starts, of_mean, kind)
    return Onlookers(fresh, StartBeside(evaluator, kind, of_start, note), watch, eval_callback, patience_callback)


def train(
    settings: SearchSettings,
    ppo: PPO,
    looking: Onlookers,
    listeners: Sequence[Callable[[Sample], None]],
    callbacks: Sequence[BaseCallback] = (),
) -> None:
    """Trains a policy for as many evaluations as the settings say, or until a callback ends it.

    Args:
        settings: of the search.
        ppo: whose policy is trained, in place.
        looking: who looks on.
        listeners: called with every sample in turn.
        callbacks: further ones of Stable-Baselines3; they come last.
    """
    with phase("search", f"{settings.total} evaluations", settings.total) as advance:
        heard = (*listeners, lambda sample: advance(note=told(sample, settings.rewarded.of_text)))
        record = SampleCallback(*heard, start_reward=looking.beside.reward)
        curriculum = ProgressiveSchedulingCallback(settings.schedule(), looking.fresh)
        ordered = (curriculum, looking.eval_callback, record, looking.patience_callback, *callbacks)
        ppo.learn(settings.total, [callback for callback in ordered if callback is not None])
        if looking.eval_callback is not None:
            looking.eval_callback.look()
