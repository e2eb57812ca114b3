"""ProgressiveSchedule against the formulas of the paper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffprune_env.search.schedule import ProgressiveSchedule
from ffprune_env.search.settings import SearchSettings


@given(st.floats(0, 1), st.integers(0, 1000))
def test_equation_3_for_a_search_of_1000_steps(alpha_start, t):
    schedule = ProgressiveSchedule(0.2, 8, 1000, alpha_start=alpha_start)
    assert schedule.alpha(t) == pytest.approx(alpha_start + (1 - alpha_start) / (1 + math.exp(0.01 * (500 - t))))
    assert schedule.sparsity(t) == pytest.approx(0.2 * schedule.alpha(t))
    assert schedule.samples(t) == max(1, round(8 * schedule.alpha(t)))


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_the_curve_keeps_its_shape_for_any_length(total, fraction):
    short, paper = (ProgressiveSchedule(0.3, 8, steps) for steps in (total, 1000))
    assert short.alpha(fraction * total) == pytest.approx(paper.alpha(fraction * 1000))


@given(st.integers(2, 500))
def test_the_task_only_gets_harder_and_never_reaches_the_end(total):
    schedule = ProgressiveSchedule(0.2, 16, total)
    alphas = [schedule.alpha(t) for t in range(total)]
    samples = [schedule.samples(t) for t in range(total)]
    assert alphas == sorted(alphas)
    assert samples == sorted(samples)
    assert alphas[-1] < 1
    assert samples[0] >= 1


def test_sparsity_does_not_go_below_what_a_max_allows():
    schedule = ProgressiveSchedule(0.2, 8, 100, alpha_start=0.0, min_sparsity=0.1)
    assert schedule.sparsity(0) == 0.1
    assert schedule.sparsity(100) == pytest.approx(0.2, rel=0.01)


def test_alpha_start_one_switches_the_curriculum_off():
    schedule = ProgressiveSchedule(0.2, 8, 100, alpha_start=1.0)
    assert {(schedule.sparsity(t), schedule.samples(t)) for t in range(100)} == {(0.2, 8)}


def test_steep_schedules_do_not_overflow():
    assert ProgressiveSchedule(0.2, 8, 100, alpha_start=0.0, k=1e6).alpha(0) == pytest.approx(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"final_sparsity": 1.0},
        {"max_samples": 0},
        {"total_steps": 0},
        {"alpha_start": 1.1},
        {"k": 0.0},
        {"t0": math.nan},
    ],
)
def test_arguments_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        ProgressiveSchedule(**{"final_sparsity": 0.2, "max_samples": 8, "total_steps": 100, **wrong})


def test_either_ramp_can_be_switched_off():
    curve = ProgressiveSchedule(0.3, 8, 100)
    steep = ProgressiveSchedule(0.3, 8, 100, ramp_sparsity=False)
    fine = ProgressiveSchedule(0.3, 8, 100, ramp_samples=False)
    for t in range(0, 100, 7):
        assert (steep.sparsity(t), steep.samples(t)) == (0.3, curve.samples(t))
        assert (fine.sparsity(t), fine.samples(t)) == (curve.sparsity(t), 8)


def test_several_targets_take_turns():
    schedule = ProgressiveSchedule(0.4, 8, 100, targets=(0.1, 0.4), turn=4)
    assert [schedule.target(t) for t in range(10)] == [0.1] * 4 + [0.4] * 4 + [0.1] * 2
    assert schedule.sparsity(5) == pytest.approx(0.4 * schedule.alpha(4))
    with pytest.raises(ValueError, match="targets must be up to final_sparsity"):
        ProgressiveSchedule(0.3, 8, 100, targets=(0.1, 0.4))


@pytest.mark.parametrize("targets", [(), (0.1, 0.4)])
def test_what_one_update_compares_was_asked_for_the_same_sparsity(targets):
    schedule = ProgressiveSchedule(0.4, 8, 96, targets=targets, turn=16)
    asked = [schedule.sparsity(t) for t in range(96)]
    rollouts = [set(asked[t : t + 16]) for t in range(0, 96, 16)]
    assert [len(one) for one in rollouts] == [1] * 6
    assert len(set.union(*rollouts)) == 6  # and the curve goes on between them


@given(st.integers(2, 200), st.integers(2, 64), st.integers(2, 16))
def test_what_one_update_compares_was_measured_on_the_same_windows(evaluations, rollout, windows):
    settings = SearchSettings(evaluations=evaluations, rollout=rollout, search_windows=windows)
    schedule, rollout = settings.schedule(), settings.per_update
    numbers = [schedule.samples(t) for t in range(settings.total)]
    rollouts = [numbers[t : t + rollout] for t in range(0, len(numbers), rollout)]
    assert all(len(set(one)) == 1 for one in rollouts)
    assert [one[0] for one in rollouts] == [
        max(1, round(windows * schedule.alpha(t))) for t in range(0, len(numbers), rollout)
    ]
