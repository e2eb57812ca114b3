"""A search on fresh windows: which are drawn, what candidates are compared with, and what all of it costs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_callbacks import make_sample

import ffprune_env as ff
from ffprune_env.budget.mapping import allocate
from ffprune_env.budget.sparsity_range import SparsityRange
from ffprune_env.evaluators.protocol import number_of
from ffprune_env.methods.ppo import ppo
from ffprune_env.search.affordable import most_windows
from ffprune_env.search.fresh_windows import FreshWindows, deal
from ffprune_env.search.meter import Meter
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import learned, run_search
from ffprune_env.search.samples import Archive
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.parse import parse_start

POOL = 12


class Windowed(ff.SurrogateEvaluator):
    """Pruning does more damage on some windows than on others; it writes down what it is asked, and on what."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.hardness = np.exp(np.random.default_rng(5).normal(0, 0.5, len(self.pool) + len(self.watch)))
        self.asked = []

    def compare(self, kept, n_samples):
        self.asked.append((kept.tobytes(), n_samples))
        ppl, damage = super().compare(kept, n_samples)
        if isinstance(n_samples, int):
            return ppl, damage
        damage *= self.hardness[list(n_samples)].mean()
        return self._dense_ppl * math.exp(damage), damage


def windowed(pool=POOL, watch=0):
    plain = ff.SurrogateEvaluator.synthetic(n_layers=4)
    return Windowed(plain.units, plain.curves, max_samples=3, pool=pool, watch=watch)


def searched(evaluator, logger=None, **changes):
    asked = {
        "sparsity": 0.3,
        "evaluations": 32,
        "search_windows": 3,
        "final_windows": 3,
        "init": "ffn-only",
        "rollout": 4,
    }
    settings = SearchSettings(**asked | {"fresh_windows": True, "pool_windows": POOL} | changes)
    settings.require_allowed()
    start = parse_start(settings)
    scores = start.scores(Problem.of(evaluator, settings.target), settings.targets)
    return settings, scores, run_search(settings, evaluator, start, scores, logger=logger)


@given(st.integers(1, 30), st.lists(st.integers(1, 30), max_size=30), st.integers(0, 5))
def test_a_deck_is_dealt_before_it_is_shuffled(pool, counts, seed):
    counts = [min(count, pool) for count in counts]
    drawn = deal(range(pool), counts, seed)
    assert [len(windows) for windows in drawn] == counts
    assert all(len(set(windows)) == len(windows) and set(windows) <= set(range(pool)) for windows in drawn)
    assert drawn == deal(range(pool), counts, seed)
    first = 0
    while first < len(counts) and sum(counts[: first + 1]) <= pool:
        first += 1
    seen = [i for windows in drawn[:first] for i in windows]
    assert len(set(seen)) == len(seen)


def test_all_windows_of_the_pool_come_equally_often():
    drawn = deal(range(12), [3] * 40, seed=1)
    assert set(Counter(i for windows in drawn for i in windows).values()) == {10}
    assert drawn[:4] != drawn[4:8]
    assert drawn != deal(range(12), [3] * 40, seed=2)


def test_a_rollout_has_one_set_of_windows_and_the_next_another():
    settings, _, outcome = searched(windowed())
    schedule = settings.schedule()
    drawn = FreshWindows(schedule, range(POOL), settings.seed)
    by_rollout = {}
    for sample in outcome.samples:
        assert sample.windows == drawn.at(sample.step)
        assert sample.n_samples == len(sample.windows) == schedule.samples(sample.step)
        by_rollout.setdefault(sample.step // settings.per_update, set()).add(sample.windows)
    assert all(len(sets) == 1 for sets in by_rollout.values())
    assert len(set.union(*by_rollout.values())) > len(by_rollout) / 2


def test_every_candidate_is_compared_with_the_start_on_its_own_windows():
    evaluator = windowed()
    _, scores, outcome = searched(evaluator, sparsity=(0.2, 0.3))
    for sample in outcome.samples:
        start = allocate(scores.targets[sample.target_sparsity], sample.target_sparsity, evaluator.units).kept
        on = sample.windows
        assert sample.dense_ppl == evaluator.dense(on)
        assert sample.ppl == evaluator.measure(sample.kept, on)
        assert sample.start_reward == evaluator.dense(on) / evaluator.measure(start, on)
        assert sample.merit == sample.reward / sample.start_reward


def test_the_archive_ranks_by_the_lead_on_the_start():
    """0.9 on windows where the start has 0.95 is worse than 0.6 where it has 0.5; on fewer windows it still is last."""
    archive = Archive(0.2, size=3)
    for step, (reward, of_start, n) in enumerate([(0.9, 0.95, 2), (0.6, 0.5, 2), (0.7, 0.7, 2), (0.9, 0.1, 1)]):
        sample = make_sample(step, reward, n_samples=n)
        archive(dataclasses.replace(sample, start_reward=of_start, windows=tuple(range(n))))
    assert [sample.reward for sample in archive.best()] == [0.6, 0.7, 0.9]
    assert archive.best()[-1].n_samples == 2


def test_the_cost_is_what_was_measured_and_what_was_announced():
    evaluator = windowed()
    settings, _, outcome = searched(evaluator)
    fixed = sum(sample.n_samples for sample in outcome.samples)
    sets = {sample.windows for sample in outcome.samples}
    dense = len(set().union(*sets))
    asked = sum(number_of(n) for _, n in evaluator.asked)
    assert outcome.windows == asked + dense + outcome.answers[0.3].spent
    assert outcome.windows - outcome.answers[0.3].spent - fixed == sum(map(len, sets)) + dense
    assert outcome.windows <= most_windows(settings)
    plain = dataclasses.replace(settings, fresh_windows=False)
    assert most_windows(settings) > most_windows(plain) > fixed
    few = dataclasses.replace(settings, pool_windows=1)  # a pool has what one evaluation takes, at the least
    fewest = dataclasses.replace(settings, pool_windows=settings.search_windows)
    assert most_windows(few) == most_windows(fewest)


def test_a_meter_counts_the_start_and_the_dense_model_too():
    evaluator = windowed()
    meter = Meter(evaluator, 100)
    _, _, outcome = searched(meter)
    assert meter.spent == outcome.windows
    problem = Problem.of(windowed(), 0.3, evaluations=40)
    ppo(problem, SearchSettings(init="ffn-only"))  # takes what its budget lasts, on fresh windows, as there is a pool
    assert problem.meter.budget * 0.75 < problem.meter.spent <= problem.meter.budget
    assert any(isinstance(n, tuple) for _, n in problem.meter.evaluator.asked)


def test_a_search_on_fresh_windows_finds_more_than_its_start():
    evaluator = windowed()
    _, _, outcome = searched(evaluator, evaluations=96)
    answer = outcome.answers[0.3]
    assert answer.added.nats > 0.02
    assert answer.added.nats == pytest.approx(
        math.log(evaluator.measure(ff.ffn_only(0.3, evaluator.units).kept, 3))
        - math.log(evaluator.measure(answer.allocation.kept, 3))
    )


def test_with_a_divergence_as_reward_that_is_compared():
    _, _, outcome = searched(windowed(), reward="kl")
    assert all(sample.kl is not None and 0 < sample.start_reward < 1 for sample in outcome.samples)


def test_what_cannot_be_is_said():
    with pytest.raises(
        ValueError, match=r"--fresh-windows compares .* --ramp-sparsity changes: add --no-fresh-windows"
    ):
        SearchSettings(fresh_windows=True, ramp_sparsity=True).require_allowed()
    with pytest.raises(ValueError, match="a pool of at least 3, the evaluator has 2: build it with"):
        searched(windowed(pool=2))
    env = ff.PruneBanditEnv(windowed())
    for wrong in ((), (1, 1), (-1,)):
        with pytest.raises(ValueError, match="windows must be different indices from 0, at least one"):
            env.set_task(n_samples=wrong)
    env.set_task(n_samples=(4, 2))
    assert env.reset()[1]["windows"].tolist() == [4, 2]
    assert env.step(env.action_space.sample())[4]["n_samples"] == 2


def test_over_a_range_the_start_is_asked_at_the_sparsity_of_every_rollout():
    evaluator = windowed(watch=2)
    settings, scores, outcome = searched(evaluator, sparsity=SparsityRange(0.2, 0.4), patience=8, watch_windows=2)
    assert len({sample.target_sparsity for sample in outcome.samples}) == 8
    started = learned(settings, evaluator.units, scores.everywhere)
    for sample in outcome.samples:
        start = started.allocate(sample.target_sparsity).kept
        assert sample.start_reward == evaluator.dense(sample.windows) / evaluator.measure(start, sample.windows)
    assert outcome.windows <= most_windows(settings)
    assert len({answer.added for answer in outcome.answers.values()}) == 1  # one function of σ was chosen
    line = outcome.told()
    assert line.startswith("PPO added")
