"""The paper's preset: its scores are free, its curriculum is one, and it is the paper's search that runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.methods.registry import METHODS
from ffprune_env.search.presets import search_settings
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import run_search
from ffprune_env.search.samples import share_at_bound
from ffprune_env.search.starts.parse import parse_start

CURVES = SurrogateEvaluator.synthetic(n_layers=8, seed=3)
PAPER = search_settings("paper")


def searched(settings):
    start = parse_start(settings)
    problem = Problem.of(CURVES, settings.target, a_min=settings.lowest)
    return run_search(settings, CURVES, start, start.scores(problem, settings.targets))


def test_fewer_than_one_in_ten_thousand_scores_are_clipped():
    samples = searched(replace(PAPER, evaluations=640)).samples
    assert len(samples) * len(CURVES.units) > 10_000
    assert share_at_bound(samples, PAPER.action_scale * PAPER.action_bound) < 1e-4


def test_the_share_at_the_bound_is_told_where_there_is_one():
    settings = replace(PAPER, evaluations=64, action_bound=1.0)
    assert 0.2 < share_at_bound(searched(settings).samples, 1.0) < 0.5  # of normal deviates 32 % are beyond 1


def test_the_curriculum_is_no_single_jump():
    schedule = PAPER.schedule()
    windows = [schedule.samples(t) for t in range(PAPER.total)]
    assert windows == sorted(windows)
    assert len(set(windows)) >= 4
    assert windows[-1] == PAPER.search_windows >= 8
    sparsities = [schedule.sparsity(t) for t in range(PAPER.total)]
    assert sparsities == sorted(sparsities)
    assert sparsities[0] < 0.6 * PAPER.target


@pytest.mark.parametrize("without", ["ramp_sparsity", "ramp_windows"])
def test_without_a_curriculum_all_is_asked_from_the_start(without):
    schedule = replace(PAPER, **{without: False}).schedule()
    asked = [schedule.sparsity(t) if without == "ramp_sparsity" else schedule.samples(t) for t in (0, 500, 999)]
    np.testing.assert_array_equal(asked, PAPER.target if without == "ramp_sparsity" else PAPER.search_windows)


def test_a_search_that_has_nothing_to_choose_is_refused():
    with pytest.raises(ValueError, match=r"--a-min 0\.5 leaves .* --sparsity 0\.5, .* give one of 0\.4 or less"):
        replace(PAPER, sparsity=0.5, a_min=0.5).require_allowed()


@pytest.mark.parametrize(("sparsity", "lowest"), [(0.2, 0.7), (0.3, 0.6), (0.5, 0.4), (0.95, 0.0)])
def test_the_lowest_rate_is_a_tenth_below_what_is_kept_where_nobody_says_it(sparsity, lowest):
    settings = replace(PAPER, sparsity=sparsity)
    settings.require_allowed()
    assert settings.lowest == settings.bounds["a_min"] == settings.meaning()["a_min"] == pytest.approx(lowest)
    assert replace(settings, sparsity=(0.1, sparsity)).lowest == settings.lowest  # one policy has one meaning
    assert replace(settings, a_min=0.04).lowest == 0.04


@pytest.mark.parametrize(("sparsity", "got"), [((), "none"), (-0.5, "-0.5"), (1.5, "1.5")])
def test_a_sparsity_that_is_none_is_told_before_what_goes_with_it(sparsity, got):
    with pytest.raises(ValueError, match=f"--sparsity takes numbers between 0 and 1, got {got}; "):
        replace(PAPER, sparsity=sparsity).require_allowed()


@pytest.mark.parametrize("sparsity", [0.2, 0.3, 0.5])
def test_the_papers_method_ends_at_that_rate(sparsity):
    allocation = METHODS["ppo-paper"].answer(Problem.of(CURVES, sparsity, evaluations=20))
    assert allocation.rates.min() == pytest.approx(0.9 - sparsity, abs=0.02)
    assert allocation.rates.max() == 1
