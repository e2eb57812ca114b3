"""Stable-Baselines3 callbacks of a search: its schedule, what it records and keeps, and how it stops."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from ffprune_env.lm.replacing import replacing
from ffprune_env.search.fresh_windows import FreshWindows
from ffprune_env.search.samples import Sample
from ffprune_env.search.schedule import ProgressiveSchedule

if TYPE_CHECKING:
    from gymnasium import spaces


class ProgressiveSchedulingCallback(BaseCallback):
    """Drives σ_t and n_t of every environment from α(t), where t counts environment steps (Eqs. 3-5).

    A task takes effect at the reset that follows, and vectorized environments reset inside ``step``; so every task is
    set one step ahead. Logs ``schedule/alpha``, ``schedule/sparsity`` and ``schedule/n_samples``.

    Args:
        schedule: the curve.
        fresh: which windows those are, if not the first of search text.

    Raises:
        ValueError: at the start of training, if the environments cannot follow the schedule to its end.
    """

    def __init__(self, schedule: ProgressiveSchedule, fresh: FreshWindows | None = None) -> None:
        super().__init__()
        self.schedule, self.fresh = schedule, fresh

    def _on_training_start(self) -> None:
        # What the schedule leads to must be feasible, or the search would fail on its way.
        self.training_env.env_method("set_task", self.schedule.final_sparsity, self.schedule.max_samples)
        self._set_task(self.num_timesteps)
        # learn() has reset the environments already, to whatever task they had before.
        self.model._last_obs = self.training_env.reset()  # type: ignore[assignment]
        self._set_task(self.num_timesteps + self.training_env.num_envs)

    def _on_step(self) -> bool:
        t = self.num_timesteps - self.training_env.num_envs  # of the step just made
        self.logger.record("schedule/alpha", self.schedule.alpha(t))
        self.logger.record("schedule/sparsity", self.schedule.sparsity(t))
        self.logger.record("schedule/n_samples", self.schedule.samples(t))
        # The observation of the next step is out already; this task is for the one after it.
        self._set_task(self.num_timesteps + self.training_env.num_envs)
        return True

    def _set_task(self, t: int) -> None:
        windows = self.schedule.samples(t) if self.fresh is None else self.fresh.at(t)
        self.training_env.env_method("set_task", self.schedule.sparsity(t), windows)


class SampleCallback(BaseCallback):
    """Makes a :class:`Sample` of every environment step, logs it, and hands it on.

    Logs under ``search/``: sparsity, collapsed_rate, at_bound_rate (of all scores, those that were clipped to the bound
    of the action space), seconds. Logs under ``search_on_<n_t>/``, since what is measured on another number of windows
    does not compare and TensorBoard smooths its curves: reward, ppl, dense_ppl, and best_reward (so far, at the same
    σ_t). Of windows that are drawn anew rewards do not compare either: there merit and best_merit take the place of
    best_reward.

    Args:
        listeners: called with each sample in turn: an archive, a log file, a progress bar.
        start_reward: what the start is rewarded with, at a sparsity and on windows that were drawn.
    """

    def __init__(
        self,
        *listeners: Callable[[Sample], None],
        start_reward: Callable[[float, tuple[int, ...]], float] | None = None,
    ) -> None:
        super().__init__()
        self.listeners, self.start_reward = listeners, start_reward
        self._clock = 0.0
        self._count = 0
        self._collapsed = self._at_bound = self._actions = 0
        self._best: dict[tuple[float, int], float] = {}

    def _on_rollout_start(self) -> None:
        self._clock = time.perf_counter()

    def _on_step(self) -> bool:
        infos: list[dict[str, Any]] = self.locals["infos"]
        seconds = (time.perf_counter() - self._clock) / len(infos)
        actions = self.locals["clipped_actions"]
        self._actions += actions.size
        bound = cast("spaces.Box", self.training_env.action_space).high
        self._at_bound += int((np.abs(actions) >= bound).sum())
        for i, info in enumerate(infos):
            sample = Sample(
                step=self.num_timesteps - len(infos) + i,
                reward=float(self.locals["rewards"][i]),
                seconds=seconds,
                kl=info.get("kl"),
                **self._of_windows(info),
                **{key: info[key] for key in _FROM_INFO},
            )
            self._log(sample)
            for listener in self.listeners:
                listener(sample)
        self.logger.dump(self.num_timesteps)
        self._clock = time.perf_counter()
        return True

    def _of_windows(self, info: dict[str, Any]) -> dict[str, Any]:
        """What is said of windows that were drawn; nothing of the first."""
        if "windows" not in info or self.start_reward is None:
            return {}
        windows = tuple(info["windows"].tolist())
        return {"windows": windows, "start_reward": self.start_reward(info["target_sparsity"], windows)}

    def _log(self, sample: Sample) -> None:
        self._count += 1
        self._collapsed += sample.collapsed
        task = sample.target_sparsity, sample.n_samples
        self._best[task] = max(self._best.get(task, sample.merit), sample.merit)
        measured = f"search_on_{sample.n_samples}"
        for key in ("reward", "ppl", "dense_ppl", "sparsity", "seconds"):
            value = getattr(sample, key)
            if np.isfinite(value):
                self.logger.record(f"{'search' if key in ('sparsity', 'seconds') else measured}/{key}", value)
        if sample.start_reward is None:
            self.logger.record(f"{measured}/best_reward", self._best[task])
        else:
            self.logger.record(f"{measured}/merit", sample.merit)
            self.logger.record(f"{measured}/best_merit", self._best[task])
        self.logger.record("search/collapsed_rate", self._collapsed / self._count)
        self.logger.record("search/at_bound_rate", self._at_bound / self._actions)


_FROM_INFO = (
    "target_sparsity", "n_samples", "scores", "kept", "rates", "sparsity", "ppl", "dense_ppl", "collapsed",
)  # fmt: skip


class CheckpointCallback(BaseCallback):
    """Saves the algorithm at the start of every rollout, where its buffer is empty, and when asked to.

    Args:
        path: the .zip file, replaced in one move each time; its folder must exist.
        after: steps that are made again, from samples, and have left a checkpoint before.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        super().__init__()
        self.path, self.after = path, after

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.after:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint now."""
        with replacing(self.path) as scratch:
            self.model.save(scratch)


class InterruptCallback(BaseCallback):
    """Ctrl-C ends a training after the evaluation under way; a second Ctrl-C interrupts at once.

    As a context it gives Ctrl-C back whatever happens. Where nothing is trained it never takes it.

    Attributes:
        interrupted: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.interrupted = False
        self._previous: Any = None

    def __enter__(self) -> InterruptCallback:
        """Nothing is trained yet."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives Ctrl-C back."""
        self._give_back()

    def _on_training_start(self) -> None:
        self._previous = signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self._give_back()

    def _on_training_end(self) -> None:
        self._give_back()  # what follows ends as any program does

    def _give_back(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _on_step(self) -> bool:
        return not self.interrupted
