"""Callbacks of a search: the task of every step, the archive, and a clean stop."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ffprune_env as ff
from ffprune_env.run.tensorboard import RetentionCallback
from ffprune_env.search.callbacks import (
    CheckpointCallback,
    InterruptCallback,
    ProgressiveSchedulingCallback,
    SampleCallback,
)
from ffprune_env.search.samples import Archive, Sample, share_at_bound


def make_env():
    return ff.PruneBanditEnv(ff.SurrogateEvaluator.synthetic(n_layers=4))


def make_sample(step, reward, target_sparsity=0.2, kept=None, n_samples=1):
    kept = np.array([step + 1, 1]) if kept is None else np.array(kept)
    return Sample(
        step=step, target_sparsity=target_sparsity, n_samples=n_samples, scores=np.zeros(2), kept=kept,
        rates=kept / 100, sparsity=target_sparsity, ppl=10 / reward, dense_ppl=10.0, reward=reward, collapsed=False,
        seconds=0.1,
    )  # fmt: skip


class Observations(BaseCallback):
    """Writes down what the policy saw before every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        self.seen += self.locals["obs_tensor"].flatten().tolist()
        return True


@pytest.mark.parametrize("n_envs", [1, 3])
def test_every_step_has_the_task_of_its_time_and_the_policy_saw_it(n_envs):
    schedule = ff.ProgressiveSchedule(0.3, 8, 60, alpha_start=0.2)
    policy = PPO("MlpPolicy", DummyVecEnv([make_env] * n_envs), n_steps=60 // n_envs, batch_size=60, device="cpu")
    samples, observations = [], Observations()
    record = SampleCallback(samples.append)
    policy.learn(60, [ProgressiveSchedulingCallback(schedule), record, observations])
    assert [sample.step for sample in samples] == list(range(60))
    for sample, seen in zip(samples, observations.seen, strict=True):
        t = sample.step - sample.step % n_envs  # environments that step together share a task
        assert sample.target_sparsity == schedule.sparsity(t)
        assert sample.n_samples == schedule.samples(t)
        assert seen == pytest.approx(sample.target_sparsity)


def test_the_schedule_goes_on_where_a_second_learn_starts():
    schedule = ff.ProgressiveSchedule(0.3, 8, 40, alpha_start=0.2)
    policy = A2C("MlpPolicy", make_env(), n_steps=20, device="cpu")
    samples = []
    callbacks = [ProgressiveSchedulingCallback(schedule), SampleCallback(samples.append)]
    policy.learn(20, callbacks)
    policy.learn(20, callbacks, reset_num_timesteps=False)
    assert [sample.target_sparsity for sample in samples] == [schedule.sparsity(t) for t in range(40)]


def test_a_schedule_that_ends_beyond_the_environment_fails_before_the_first_step():
    policy = PPO("MlpPolicy", make_env(), n_steps=8, batch_size=8, device="cpu")
    for schedule in (ff.ProgressiveSchedule(0.3, 16, 64), ff.ProgressiveSchedule(0.9, 8, 64)):
        with pytest.raises(ValueError, match=r"n_samples must be between 1 and 8|sparsity 0\.9 is out of range"):
            policy.learn(64, ProgressiveSchedulingCallback(schedule))
        assert policy.num_timesteps == 0


def test_everything_promised_is_logged(tmp_path):
    schedule = ff.ProgressiveSchedule(0.3, 8, 16, alpha_start=0.5, ramp_sparsity=False)
    policy = PPO("MlpPolicy", make_env(), n_steps=8, batch_size=8, device="cpu")
    policy.set_logger(configure(str(tmp_path), ["tensorboard"]))
    listening = [SampleCallback(), RetentionCallback(make_env().evaluator.units)]
    policy.learn(16, [ProgressiveSchedulingCallback(schedule), *listening])
    policy.logger.dump(16)
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = set(events.Tags()["scalars"])
    for key in ("alpha", "sparsity", "n_samples"):
        assert [event.step for event in events.Scalars(f"schedule/{key}")] == list(range(1, 17))
    for key in ("at_bound_rate", "collapsed_rate", "seconds", "sparsity"):
        assert [event.step for event in events.Scalars(f"search/{key}")] == list(range(1, 17))
    samples = [schedule.samples(t) for t in range(16)]
    assert len(set(samples)) > 1
    for n in set(samples):  # a curve of its own for every number of windows
        steps = [t + 1 for t in range(16) if samples[t] == n]
        for key in ("reward", "ppl", "dense_ppl", "best_reward"):
            assert [event.step for event in events.Scalars(f"search_on_{n}/{key}")] == steps
            assert f"search/{key}" not in scalars
        best, rewards = (
            [event.value for event in events.Scalars(f"search_on_{n}/{key}")] for key in ("best_reward", "reward")
        )
        np.testing.assert_allclose(best, np.maximum.accumulate(rewards))
    assert events.Tags()["histograms"] == ["retention/rates"]
    assert events.Tags()["images"] == ["retention/layers"]


def test_the_archive_keeps_the_best_of_the_comparable():
    archive = Archive(0.2, size=3)
    for step, reward in enumerate([0.2, 0.9, 0.5, 0.7, 0.1]):
        archive(make_sample(step, reward))
    archive(make_sample(9, 0.99, target_sparsity=0.1))  # easier, so it looks better
    assert [sample.reward for sample in archive.best()] == [0.9, 0.7, 0.5]


def test_the_archive_falls_back_on_the_nearest_and_holds_no_twins():
    """A search whose sparsity ends before it comes near has nothing else: of its last rollout the best, by reward."""
    archive = Archive(0.2, size=2)
    for step, (sparsity, reward) in enumerate([(0.1, 0.9), (0.15, 0.4), (0.15, 0.6), (0.15, 0.5), (0.25, 0.99)]):
        archive(make_sample(step, reward, target_sparsity=sparsity))
    assert [sample.step for sample in archive.best()] == [2, 3]
    archive(make_sample(5, 0.3, kept=[7, 7]))
    archive(make_sample(6, 0.3, kept=[7, 7]))
    assert [sample.step for sample in archive.best()] == [6, 2]


def test_one_easy_window_does_not_decide():
    """On an easy window everything looks better than on two: what was measured on two comes first, by its reward."""
    archive = Archive(0.2, size=2)
    for step, (reward, n_samples) in enumerate([(0.95, 1), (0.94, 1), (0.80, 2), (0.93, 1), (0.85, 2), (0.96, 1)]):
        archive(make_sample(step, reward, n_samples=n_samples))
    assert [sample.reward for sample in archive.best()] == [0.85, 0.80]
    archive = Archive(0.2, size=3)
    for step, (reward, n_samples) in enumerate([(0.95, 1), (0.80, 2), (0.99, 1)]):
        archive(make_sample(step, reward, n_samples=n_samples))
    assert [sample.reward for sample in archive.best()] == [0.80, 0.99, 0.95]  # what is left to be filled, from fewer


def test_a_sample_that_was_measured_on_more_windows_stays_so():
    archive = Archive(0.2, size=2)
    archive(make_sample(0, 0.7, kept=[7, 7], n_samples=2))
    archive(make_sample(1, 0.9, kept=[7, 7], n_samples=1))
    archive(make_sample(2, 0.9, kept=[7, 7], n_samples=2, target_sparsity=0.1))
    assert [(sample.step, sample.reward) for sample in archive.best()] == [(0, 0.7)]


def test_samples_say_what_the_environment_saw(tmp_path):
    env = make_env()
    samples = []
    policy = PPO("MlpPolicy", env, n_steps=8, batch_size=8, policy_kwargs={"log_std_init": 2.0}, device="cpu")
    policy.set_logger(configure(str(tmp_path), ["json"]))
    policy.learn(8, SampleCallback(samples.append))
    logged = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    at_bound = logged[7]["search/at_bound_rate"]
    assert at_bound == pytest.approx(share_at_bound(samples, env.action_scale))
    assert at_bound > 0.5
    for sample in samples:
        assert np.abs(sample.scores).max() <= env.action_scale  # clipped to the box before it was scaled
        allocation = ff.allocate(sample.scores, sample.target_sparsity, env.evaluator.units, mapping="waterfill")
        np.testing.assert_array_equal(allocation.kept, sample.kept)
        assert sample.ppl == env.evaluator.measure(sample.kept, 1)


def test_ctrl_c_ends_the_search_after_the_evaluation_under_way():
    env = make_env()
    samples = []

    def press(sample):
        samples.append(sample)
        if len(samples) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with InterruptCallback() as interrupt:
        PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu").learn(64, [SampleCallback(press), interrupt])
    assert interrupt.interrupted
    assert len(samples) == 5
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_is_the_policy_at_the_start_of_the_last_rollout(tmp_path):
    path = tmp_path / "policy.zip"
    policy = PPO("MlpPolicy", make_env(), n_steps=8, batch_size=8, device="cpu")
    policy.learn(24, CheckpointCallback(path))
    assert PPO.load(path, device="cpu").num_timesteps == 16
    assert [file.name for file in tmp_path.iterdir()] == ["policy.zip"]


def test_where_nothing_is_trained_ctrl_c_does_what_it_always_does():
    before = signal.getsignal(signal.SIGINT)
    with InterruptCallback() as interrupt:
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before
    assert not interrupt.interrupted
