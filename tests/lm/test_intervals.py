"""The interval of a perplexity holds the truth as often as it says, of few windows too, or there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import stdtrit

from ffprune_env.lm.intervals import (
    LEAST_NEIGHBOURS,
    LEAST_WINDOWS,
    effective_windows,
    perplexity_interval,
    upper_bound,
)

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
    """2000 texts of n windows: the share of intervals that hold the true perplexity is 95 %, to within two errors.

    From 8 windows on it is a little more, since some are taken for alike that are so by chance.
    """
    losses = LOSSES[name](np.random.default_rng(0), (2000, n))
    intervals = np.array([perplexity_interval(of_one_text) for of_one_text in losses])
    held = np.mean((intervals[:, 0] <= math.exp(3)) & (math.exp(3) <= intervals[:, 1]))
    print(f"{name}, {n} windows: {held:.1%}")
    error = math.sqrt(0.95 * 0.05 / 2000)
    skewed = 0.02 if name.startswith("skewed") else 0.01 if name == "heavy tails" else 0.0
    assert 0.95 - 2 * error - skewed <= held <= 0.95 + 2 * error + (0.01 if n >= LEAST_NEIGHBOURS else 0)


def alike(rng, n, correlation):
    """2000 texts of n windows with losses of mean 3, in which each is like the one before."""
    losses = np.empty((2000, n))
    losses[:, 0] = rng.normal(size=2000)
    for i in range(1, n):
        losses[:, i] = correlation * losses[:, i - 1] + math.sqrt(1 - correlation**2) * rng.normal(size=2000)
    return 3 + 0.3 * losses


def articles(rng, n, share):
    """The same of articles of four windows each, which have so much of the variance in common."""
    article = (np.arange(n)[None] + rng.integers(0, 4, (2000, 1))) // 4
    common = np.take_along_axis(rng.normal(size=(2000, n // 4 + 2)), article, 1)
    return 3 + 0.3 * (math.sqrt(share) * common + math.sqrt(1 - share) * rng.normal(size=(2000, n)))


@pytest.mark.parametrize(
    ("texts", "how", "n", "least"),
    [
        (alike, 0.3, 8, 0.91), (alike, 0.3, 32, 0.92), (alike, 0.5, 8, 0.87), (alike, 0.5, 16, 0.89),
        (alike, 0.5, 32, 0.91), (alike, 0.7, 64, 0.92), (articles, 0.5, 8, 0.86), (articles, 0.5, 32, 0.90),
    ],
)  # fmt: skip
def test_where_neighbours_are_alike_the_interval_is_wider_and_holds_the_truth_nearly_as_often(texts, how, n, least):
    losses = texts(np.random.default_rng(0), n, how)
    intervals = np.log([perplexity_interval(of_one_text) for of_one_text in losses])
    held = np.mean((intervals[:, 0] <= 3) & (intervals[:, 1] >= 3))
    half = stdtrit(n - 1, 0.975) * losses.std(axis=1, ddof=1) / math.sqrt(n)
    before = np.mean(abs(losses.mean(axis=1) - 3) <= half)
    print(f"{texts.__name__} {how}, {n} windows: {held:.1%}, taken as independent {before:.1%}")
    assert least <= held <= 0.97
    assert before < held - 0.03
    assert (np.diff(intervals)[:, 0] >= 2 * half * (1 - 1e-9)).all()


def test_how_many_independent_windows_say_as_much():
    assert effective_windows(np.array([0.0, 1.0] * 8)) == 16  # unlike: no better than independent
    assert effective_windows(np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0])) == 7  # too few to tell
    assert effective_windows(np.ones(9)) == 9
    losses = np.array([0.0, 0.0, 1.0, 1.0] * 4)
    found = (8 - 7) / 16  # of 15 pairs of neighbours 8 are on one side of the mean
    r = found + (1 + 3 * found) / 16
    assert effective_windows(losses) == pytest.approx(16 * (1 - r) / (1 + r))
    assert effective_windows(np.arange(100.0)) == pytest.approx(100 * 0.1 / 1.9)
    assert effective_windows(np.arange(8.0)) == LEAST_WINDOWS


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


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [4, 8, 32])
def test_the_truth_is_below_the_bound_as_often_as_it_says(name, n):
    """2000 texts of n windows, as for the interval: 95 %, on the one side that counts."""
    losses = LOSSES[name](np.random.default_rng(0), (2000, n))
    bounds = np.array([upper_bound(of_one_text) for of_one_text in losses])
    held = np.mean(bounds >= 3)
    print(f"{name}, {n} windows: {held:.1%}")
    error = math.sqrt(0.95 * 0.05 / 2000)
    # Of what is skewed to the right the mean is mostly below the truth.
    skewed = {"skewed": 0.05, "skewed to the left": -0.01}.get(name, 0.0)
    assert 0.95 - 2 * error - skewed <= held <= 0.99


def test_a_bound_of_equal_differences_is_their_value_and_of_few_there_is_none():
    assert upper_bound(np.full(8, 0.1)) == pytest.approx(0.1)
    assert upper_bound([0.1, 0.2, math.inf, 0.3]) == math.inf
    # Student's t with three degrees of freedom: 2.3534.
    assert upper_bound([0.0, 1.0, 2.0, 3.0]) == pytest.approx(1.5 + 2.3534 * math.sqrt(5 / 3) / 2, abs=1e-4)
    with pytest.raises(ValueError, match="4 windows or more"):
        upper_bound([0.1, 0.2, 0.3])
