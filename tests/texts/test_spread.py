"""Windows that stand for all: at equal distances, in the middles of equal stretches or with the ends among them."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from ffprune_env.texts.spread import middles, spread_windows


@given(st.integers(0, 200), st.integers(0, 200))
def test_middles_are_at_equal_distances(length, n):
    n = min(n, length)
    found = middles(length, n)
    assert found == [int((i + 0.5) * length / n) for i in range(n)]
    assert all(0 <= i < length for i in found)
    assert all(length // n <= b - a <= -(-length // n) for a, b in pairwise(found))


def test_middles_of_all_are_all():
    assert middles(5, 5) == [0, 1, 2, 3, 4]
    assert middles(9, 1) == [4]
    assert middles(0, 0) == []


def test_some_windows_are_spread_over_all():
    windows = torch.arange(10)[:, None].repeat(1, 4)
    assert spread_windows(windows, 12)[:, 0].tolist() == [0, 4, 9]  # 4.5 is rounded to even
    assert len(spread_windows(windows, 1000)) == 10
    assert len(spread_windows(windows, 1)) == 1
