"""The learning curve averages what compares, and says what that is."""

from __future__ import annotations

import numpy as np
import pytest

from ffprune_env.run.plots import learning_curve_plot
from ffprune_env.search.samples import Sample


def make_sample(step, reward, n_samples=1):
    return Sample(
        step=step, target_sparsity=0.2, n_samples=n_samples, scores=np.zeros(2), kept=np.array([1, 1]),
        rates=np.ones(2), sparsity=0.2, ppl=10 / reward, dense_ppl=10.0, reward=reward, collapsed=False, seconds=0.1,
    )  # fmt: skip


def lines_of(samples):
    top = learning_curve_plot(samples, {"uniform": 0.5}, "ppl").axes[0]
    legend = {text.get_text() for text in top.get_legend().get_texts()}
    lines = {str(line.get_label()): line.get_xydata() for line in top.get_lines()}
    assert legend == set(lines)
    return lines


def test_rewards_on_one_window_and_on_two_are_never_averaged():
    """One window gives 0.9, 0.5, 0.9, ..., two give 0.2: a mean over all of them would be none of either."""
    samples = [make_sample(i, 0.9 - 0.4 * (i % 2), n_samples=1) for i in range(40)]
    samples += [make_sample(i, 0.2, n_samples=2) for i in range(40, 60)]
    samples += [make_sample(60, 0.7, n_samples=1)]  # a schedule may go back
    lines = lines_of(samples)
    assert set(lines) == {
        "evaluation on 1 window", "running mean of those on 1 window", "evaluation on 2 windows",
        "running mean of those on 2 windows", "uniform at the final sparsity",
    }  # fmt: skip
    one, two = lines["running mean of those on 1 window"], lines["running mean of those on 2 windows"]
    assert two == pytest.approx(np.c_[np.arange(41, 61), np.full(20, 0.2)])
    assert one[:, 0].tolist() == [*range(1, 41), 61]
    assert one[[0, 1, 2, 39, 40], 1] == pytest.approx([0.9, 0.7, 2.3 / 3, 1.9 / 3, (0.9 + 0.5 + 0.7) / 3])
    assert lines["evaluation on 2 windows"] == pytest.approx(two)


def test_of_one_number_of_windows_there_is_one_mean():
    lines = lines_of([make_sample(i, 0.4) for i in range(3)])
    assert lines["running mean of those on 1 window"] == pytest.approx(np.array([[1, 0.4], [2, 0.4], [3, 0.4]]))


def test_rewards_at_different_sparsities_are_not_averaged():
    samples = [make_sample(i, 0.5 + 0.1 * i) for i in range(4)]
    for means in (True, False):
        top = learning_curve_plot(samples, {}, "ppl", means=means).axes[0]
        names = [str(line.get_label()) for line in top.get_lines()]
        assert names == ["evaluation on 1 window", *(["running mean of those on 1 window"] if means else [])]
