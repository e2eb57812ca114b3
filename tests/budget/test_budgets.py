"""What stands behind --budget: read once, written as it was, and bounds that are what people mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffprune_env.budget.budget import Budget, told
from ffprune_env.budget.mapping import allocate
from ffprune_env.budget.measure import Measure
from ffprune_env.budget.units import PruneUnit

UNITS = tuple(
    PruneUnit(f"unit {i}", kind, i // 2, n, n * size)
    for i, (kind, n, size) in enumerate([("attention", 8, 700), ("ffn", 24, 300)] * 4)
)
WEIGHT = sum(unit.n_params for unit in UNITS)


@pytest.mark.parametrize(
    ("words", "dense", "bound"),
    [
        ("prunable 20%", 1000, 800),
        ("parameters 20%", 135_000_000, 108_000_000),
        ("parameters 1.1B", 2_000_000_000, 1_100_000_000),
        ("parameters 104.7M", 135_000_000, 104_700_000),
        ("size 150MB", 269_000_000, 150_000_000),
        ("size 150mb", 269_000_000, 150_000_000),
        ("size 0.5GiB", 10**10, 2**29),
        ("size 0.7x", 10, 7),
        ("kv 0.5X", 23040, 11520),
        ("kv 10KB", 23040, 10_000),
        ("decode 0.75x", 40_000_000, 30_000_000),
    ],
)
def test_what_people_write(words, dense, bound):
    budget = Budget.parse(words.split())
    assert budget.bound(dense) == bound
    assert Budget.parse(budget.words) == budget


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("size", "a budget is a measure and an amount, as in size 150MB, got 'size'"),
        ("150MB", "a budget is a measure and an amount"),
        ("speed 2x", "unknown measure 'speed'; allowed are prunable, parameters, size, kv, prefill, decode, latency"),
        ("size 150", "an amount of size is written 20% (of it goes), 0.8x (of it stays) or 150MB (stays at most)"),
        ("size 150apples", "got '150apples'"),
        ("size -3MB", "got '-3MB'"),
        ("parameters nan", "got 'nan'"),
        ("prunable 4M", "an amount of prunable is written 20% (of it goes) or 0.8x (of it stays), got '4M'"),
        ("prunable 100%", "of a model more than nothing and less than all may go and stay, got prunable 100%"),
        ("parameters 1.5x", "of a model more than nothing and less than all may go and stay, got parameters 1.5x"),
        ("decode 30ms", "an amount of decode is written 20% (of it goes) or 0.8x (of it stays), got '30ms'"),
        ("parameters 0.0000001K", "an amount of parameters is written"),
        (
            "parameters 20",  # 20% was meant
            "an amount of parameters is written 20% (of it goes), 0.8x (of it stays) or 1.1B (stays at most), got '20'",
        ),
        ("parameters 999", "got '999'"),
    ],
)
def test_what_is_no_budget_is_refused_in_a_line(words, says):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        Budget.parse(words.split())
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_number_of_parameters_is_a_thousand_at_least():
    assert Budget.parse(["parameters", "1000"]) == Budget("parameters", 1000, "at most")
    assert Budget.parse(["kv", "20B"]).bound(96) == 20
    with pytest.raises(ValueError, match=r"an amount of parameters is written 20% .* got 999\b"):
        Budget("parameters", 999, "at most")


def test_amounts_are_told_in_thousands():
    assert [told(x, "size") for x in (999, 1_500, 150_200_000)] == ["999 B", "1.5 KB", "150.2 MB"]
    assert told(1_100_000_000, "parameters") == "1.1 B"
    assert told(31_500_000, "decode") == "31.5 ms"


@given(st.floats(0.05, 0.75), st.integers(1, 8), st.integers(0, 10**6), st.integers(0, 2**16))
def test_the_sparsity_of_a_budget_meets_it_and_no_smaller_one_does(share, per_weight, constant, seed):
    measure = Measure("size", UNITS, constant + per_weight * WEIGHT, per_weight)
    bound = constant + round(share * per_weight * WEIGHT) + per_weight * WEIGHT // 5
    budget = Budget("size", bound, "at most")
    if bound >= measure.dense:
        with pytest.raises(ValueError, match="nothing is to go"):
            measure.sparsity(budget)
        return
    sparsity = measure.sparsity(budget)
    assert measure.dense - per_weight * (round(sparsity * WEIGHT) - 1) > bound  # one parameter less would not do
    scores = np.random.default_rng(seed).normal(size=len(UNITS))
    kept = allocate(scores, sparsity, UNITS).kept
    assert bound - per_weight * 300 < measure.of(kept) <= bound


def test_what_cannot_be_met_says_what_can():
    measure = Measure("parameters", UNITS, WEIGHT + 50_000)
    with pytest.raises(ValueError, match=r"parameters 50K cannot be met: with --a-min 0.2 at least 6\d\.\d+ K"):
        measure.sparsity(Budget.parse(["parameters", "50K"]))
    free = Measure("kv", tuple(replace(unit, costs=(5,) * (unit.n_groups + 1)) for unit in UNITS), 40)
    with pytest.raises(ValueError, match="no part of kv goes as heads and channels do"):
        free.sparsity(Budget.parse(["kv", "0.5x"]))
