"""A search that does not pay stops, says why, and leaves the best mean that it saw."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from test_fresh_windows import searched, windowed

import ffprune_env as ff
from ffprune_env.search.affordable import most_windows
from ffprune_env.search.mean import mean_allocation


class Flat(ff.SurrogateEvaluator):
    """Whatever is pruned makes it worse by chance, and never better than the start: there is nothing to learn."""

    def compare(self, kept, n_samples):
        if isinstance(n_samples, int):
            return super().compare(kept, n_samples)
        noise = np.random.default_rng(np.frombuffer(kept.tobytes(), dtype=np.uint32)).random()
        first = kept.tobytes() == self.__dict__.setdefault("first", kept.tobytes())
        damage = 0.5 if first else 0.5 + noise
        return 15 * np.exp(damage), damage


def flat(watch=4):
    plain = ff.SurrogateEvaluator.synthetic(n_layers=4)
    return Flat(plain.units, plain.curves, max_samples=3, watch=watch)


FIXED = {"fresh_windows": False, "watch_windows": 4}


def parameters(policy):
    return torch.cat([x.flatten() for x in policy.policy.state_dict().values()])


def test_a_search_that_learns_nothing_stops(caplog):
    caplog.set_level(logging.INFO)
    settings, _, outcome = searched(flat(), patience=8, evaluations=128, **FIXED)
    assert len(outcome.samples) == 4 * 9  # the mean after 8 updates is that which the ninth rollout was drawn by
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("patience: stopped")]
    assert "stopped after 36 evaluations, the policy's mean has not become better in 8 rollouts; on 4 windows" in line
    assert outcome.windows <= most_windows(settings)
    caplog.clear()
    searched(flat(), patience=1, evaluations=128, **FIXED)
    assert "patience: stopped after 8 evaluations" in caplog.text


def test_the_policy_is_the_best_mean_and_not_the_last():
    settings, _, outcome = searched(flat(), patience=4, evaluations=128, **FIXED)
    before = searched(flat(), evaluations=4, **FIXED)[2].policy  # the same seed, and one update
    assert not torch.equal(parameters(before), parameters(outcome.policy))
    kept = mean_allocation(settings, flat().units, outcome.policy).kept
    np.testing.assert_array_equal(kept, ff.ffn_only(0.3, flat().units).kept)  # the mean that it began with


def test_a_search_that_pays_goes_on_to_its_end():
    evaluator = windowed(pool=0, watch=4)
    settings, _, outcome = searched(evaluator, patience=8, evaluations=64, **FIXED)
    assert len(outcome.samples) == 64
    watched = [kept for kept, on in evaluator.asked if on == evaluator.watch]
    assert len(set(watched)) == len(watched) > 5
    assert outcome.windows <= most_windows(settings)
    losses = {kept: evaluator.measure(np.frombuffer(kept, dtype=np.int64), evaluator.watch) for kept in watched}
    assert mean_allocation(settings, evaluator.units, outcome.policy).kept.tobytes() == min(losses, key=losses.get)


def test_the_most_that_it_costs_is_not_too_little_with_several_sparsities_and_fresh_windows():
    evaluator = windowed(watch=4)
    settings, _, outcome = searched(evaluator, patience=4, sparsity=(0.2, 0.3), evaluations=48, watch_windows=4)
    assert outcome.windows <= most_windows(settings)
    assert {on for _, on in evaluator.asked if not isinstance(on, int)} >= {evaluator.watch}
    assert not {i for sample in outcome.samples for i in sample.windows} & set(evaluator.watch)


def test_nothing_to_watch_on_is_said():
    with pytest.raises(ValueError, match="patience needs windows to watch the search on"):
        searched(flat(watch=0), patience=4, **FIXED)


def test_who_is_rewarded_for_a_divergence_is_watched_by_it():
    """As many windows are measured for it, which bounds the budget."""
    settings, _, outcome = searched(flat(), patience=4, evaluations=16, reward="kl", **FIXED)
    _, _, by_ppl = searched(flat(), patience=4, evaluations=16, **FIXED)
    assert by_ppl.windows == outcome.windows <= most_windows(settings)
