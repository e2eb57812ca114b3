"""The interval of a perplexity holds the truth as often as it says, of few windows too, or there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ffprune_env.lm.intervals import LEAST_WINDOWS, perplexity_interval

#: Losses of windows with a mean of 3: draws of a shape, by name; skewness 0, 1 and -1, and tails of Student's t.
LOSSES = {
    "normal": lambda rng, shape: rng.normal(3.0, 0.3, shape),
    "skewed": lambda rng, shape: 3.0 + 0.15 * (rng.gamma(4.0, size=shape) - 4.0),
    "skewed to the left": lambda rng, shape: 3.0 - 0.15 * (rng.gamma(4.0, size=shape) - 4.0),
    "heavy tails": lambda rng, shape: 3.0 + 0.2 * rng.standard_t(5, shape),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [4, 5, 8, 32])
def test_the_interval_holds_the_truth_as_often_as_it_says(name, n):
    """2000 texts of n windows: the share of intervals that hold the true perplexity is 95 %, to within two errors."""
    losses = LOSSES[name](np.random.default_rng(0), (2000, n))
    intervals = np.array([perplexity_interval(of_one_text) for of_one_text in losses])
    held = np.mean((intervals[:, 0] <= math.exp(3)) & (math.exp(3) <= intervals[:, 1]))
    print(f"{name}, {n} windows: {held:.1%}")
    error = math.sqrt(0.95 * 0.05 / 2000)
    skewed = 0.02 if name.startswith("skewed") else 0.01 if name == "heavy tails" else 0.0
    assert abs(held - 0.95) <= 2 * error + skewed


def test_of_few_windows_there_is_no_interval():
    losses = [1.0, 1.1, 0.9, 1.2, 1.0]
    assert LEAST_WINDOWS == 4
    assert [perplexity_interval(losses[:n]) is None for n in (0, 1, 2, 3, 4, 5)] == [True] * 4 + [False] * 2


def test_an_interval_that_is_known():
    """Losses 1, 2, 3, 4: mean 2.5, deviation √(5/3), and t of 3 degrees of freedom is 3.182."""
    half = 3.182446 * math.sqrt(5 / 3) / 2
    expected = (math.exp(2.5 - half), math.exp(2.5 + half))
    assert perplexity_interval(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(expected, rel=1e-5)
    assert perplexity_interval([2.0] * 4) == pytest.approx((math.exp(2), math.exp(2)))


def test_the_interval_of_many_losses_is_the_normal_one():
    losses = np.random.default_rng(0).normal(3.0, 0.2, 400)
    half = 1.96 * losses.std() / math.sqrt(400)
    assert np.log(perplexity_interval(losses)) == pytest.approx([losses.mean() - half, losses.mean() + half], rel=1e-3)


def test_a_loss_too_large_for_exp_has_an_infinite_bound():
    low, high = perplexity_interval([0.0, 0.0, 0.0, 1e4])
    assert low == 0
    assert high == math.inf


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_of_a_loss_that_is_not_finite_there_is_no_interval(broken):
    assert perplexity_interval([1.0, 1.0, 1.0, 1.0, broken]) is None
    with pytest.raises(ValueError, match=r"a vector, got shape \(2, 2\)"):
        perplexity_interval([[1.0, 2.0], [3.0, 4.0]])
