"""Budget mapping: what Algorithm 1 promises, for any weights, bounds, budgets and scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ffprune_env.budget.algorithm_1 import discretized, filled, squashed
from ffprune_env.budget.allocation import group_bounds, reachable_sparsities
from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.budget.mapping import allocate
from ffprune_env.budget.order import descending
from ffprune_env.budget.units import PruneUnit
from ffprune_env.budget.waterfill import waterfill_rates, waterfill_scores

MAPPINGS = ("paper", "greedy", "waterfill")


def greedy_rates(scores, *target):
    return filled(descending(scores), *target)


def paper_rates(scores, retention, weights, a_min, a_max):
    order = descending(squashed(scores, a_min, a_max))
    target = (retention, weights, a_min, a_max)
    return discretized(filled(order, *target), order, *target)


RATES = {"paper": paper_rates, "greedy": greedy_rates, "waterfill": waterfill_rates}


def make_units(sizes: list[int], groups: list[int]) -> tuple[PruneUnit, ...]:
    kinds = itertools.cycle(("attention", "ffn"))
    return tuple(
        PruneUnit(f"unit {i}", kind, i // 2, n, n * size)
        for i, (kind, n, size) in enumerate(zip(kinds, groups, sizes, strict=False))
    )


def llama_like(layers: int = 6) -> tuple[PruneUnit, ...]:
    return make_units([73728, 1728] * layers, [9, 1536] * layers)


# Parameters and number of blocks of 32, 128 and 256 of 1536 channels.
BLOCKS = ((55296, 48), (221184, 12), (442368, 6))
finite = st.floats(-50, 50, allow_nan=False)


@st.composite
def continuous_problems(draw):
    n = draw(st.integers(1, 12))
    a_min = draw(st.floats(0, 0.9))
    a_max = draw(st.floats(a_min + 0.05, 1))
    retention = draw(st.floats(a_min, a_max))
    weights = np.array(draw(st.lists(st.floats(1e3, 1e6), min_size=n, max_size=n)))
    scores = np.array(draw(st.lists(finite, min_size=n, max_size=n)))
    return scores, retention, weights, a_min, a_max


@st.composite
def group_problems(draw):
    n = draw(st.integers(1, 5))
    groups = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    sizes = draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    units = make_units(sizes, groups)
    a_min = draw(st.floats(0, 0.9))
    a_max = draw(st.floats(a_min + 0.05, 1))
    try:
        lowest, highest = reachable_sparsities(units, a_min, a_max)
    except ValueError:  # no whole number of groups between the bounds
        assume(False)
    assume(lowest <= highest)  # single-group units under tight bounds leave nothing to remove
    sparsity = draw(st.floats(lowest, highest))
    scores = draw(st.lists(st.floats(-3, 3), min_size=n, max_size=n))
    return scores, sparsity, units, a_min, a_max


@given(continuous_problems())
@example((np.array([0.0]), 1e-9, np.array([35359.0]), 0.0, 1.0))
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_rates_meet_the_budget_within_the_bounds(mapping, problem):
    scores, retention, weights, a_min, a_max = problem
    rates = RATES[mapping](scores, retention, weights, a_min, a_max)
    assert (rates >= a_min - 1e-12).all()
    assert (rates <= a_max + 1e-12).all()
    total = weights.sum()  # a sum of rates near 0 is as exact as rates near 1 are
    assert rates @ weights == pytest.approx(retention * total, rel=1e-9, abs=1e-15 * total)


@given(continuous_problems())
def test_greedy_leaves_at_most_one_unit_between_the_bounds(problem):
    scores, retention, weights, a_min, a_max = problem
    rates = greedy_rates(scores, retention, weights, a_min, a_max)
    inside = (rates > a_min + 1e-9) & (rates < a_max - 1e-9)
    assert inside.sum() <= 1


@given(continuous_problems())
@pytest.mark.parametrize("mapping", ["greedy", "waterfill"])  # of the paper's step 5 the highest score pays
def test_a_higher_score_never_keeps_less(mapping, problem):
    scores, retention, weights, a_min, a_max = problem
    rates = RATES[mapping](scores, retention, weights, a_min, a_max)[descending(scores)]
    assert (np.diff(rates) <= 1e-9).all()


@settings(max_examples=300)
@given(group_problems())
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_whole_groups_are_as_close_to_the_budget_as_any_choice_of_groups(mapping, problem):
    scores, sparsity, units, a_min, a_max = problem
    allocation = allocate(scores, sparsity, units, a_min=a_min, a_max=a_max, mapping=mapping)
    low, high = group_bounds(units, a_min, a_max)
    sizes = np.array([unit.group_params for unit in units])
    total = sum(unit.n_params for unit in units)
    assert (allocation.kept >= low).all()
    assert (allocation.kept <= high).all()
    assert allocation.sparsity == (total - allocation.kept @ sizes) / total
    assert allocation.sparsity >= sparsity
    # Brute force over group counts, one size class at a time.
    sums = {0}
    for size, fewest, most in zip(sizes, low, high, strict=True):
        sums = {s + int(size) * k for s in sums for k in range(fewest, most + 1)}
    closest = min((total - s) / total for s in sums if (total - s) / total >= sparsity)
    over = allocation.sparsity - sparsity
    assert over < sizes.min() / total or allocation.sparsity == closest


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.2, 0.35, 0.5])
def test_a_real_shape_is_met_to_one_channel(mapping, sparsity):
    units = llama_like()
    scores = np.random.default_rng(3).normal(size=len(units))
    allocation = allocate(scores, sparsity, units, mapping=mapping)
    assert 0 <= allocation.sparsity - sparsity < 1728 / sum(unit.n_params for unit in units)
    np.testing.assert_array_equal(allocation.rates, allocation.kept / [unit.n_groups for unit in units])


def test_greedy_depends_on_the_order_of_the_scores_only():
    units = llama_like()
    scores = np.random.default_rng(0).normal(size=len(units))
    ranks = np.argsort(np.argsort(scores)).astype(float) - 20  # all far below -1, where tanh ties them
    kept = (allocate(x, 0.3, units, mapping="greedy").kept for x in (scores, ranks))
    np.testing.assert_array_equal(*kept)


def test_greedy_by_hand():
    # P Σw = 0.5 · 400 = 200; all at 0.2 takes 80; unit 2 takes 80 up to 1.0; unit 0 takes the last 40: 0.2 + 0.4.
    rates = greedy_rates(np.array([1.0, -1.0, 2.0, 0.0]), 0.5, np.full(4, 100.0), 0.2, 1.0)
    np.testing.assert_allclose(rates, [0.6, 0.2, 1.0, 0.2])


def test_what_is_lacking_is_taken_from_the_lowest_score():
    # At σ = 0.1 the heads round up and the channels of the lowest-scored FFN must pay, not those of the highest.
    units = llama_like(3)
    scores = np.array([0.0, 3.0, 0.0, 2.0, 0.0, 1.0])
    kept = allocate(scores, 0.1, units, mapping="greedy").kept
    assert kept[1] == 1536


def test_waterfill_of_equal_scores_is_uniform_but_for_the_remainder():
    units = llama_like()
    waterfill = allocate(np.zeros(len(units)), 0.2, units, mapping="waterfill")
    even = uniform(0.2, units)
    assert np.abs(waterfill.kept - even.kept).max() <= len(units) // 2
    np.testing.assert_array_equal(waterfill.kept[::2], even.kept[::2])


@given(st.lists(st.floats(0.3, 0.9), min_size=2, max_size=12))
def test_waterfill_scores_lead_back_to_the_rates(rates):
    rates, weights = np.array(rates), np.linspace(1, 2, len(rates))
    scores = waterfill_scores(rates, 0.2, 1.0)
    found = waterfill_rates(scores, rates @ weights / weights.sum(), weights, 0.2, 1.0)
    np.testing.assert_allclose(found, rates, atol=1e-6)


def test_a_policy_can_start_from_ffn_only():
    units = llama_like()
    baseline = ffn_only(0.2, units)
    scores = waterfill_scores(baseline.rates, 0.2, 1.0)
    kept = allocate(scores, 0.2, units, mapping="waterfill").kept
    np.testing.assert_array_equal(kept[::2], baseline.kept[::2])
    assert np.abs(kept - baseline.kept).max() <= len(units)


@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.33, 0.5])
def test_uniform_gives_every_unit_one_rate(sparsity):
    units = llama_like()
    allocation = uniform(sparsity, units)
    heads, channels = allocation.kept[::2], allocation.kept[1::2]
    assert set(heads) == {round(9 * (1 - sparsity))}
    assert channels.max() - channels.min() <= 1
    assert 0 <= allocation.sparsity - sparsity < 1728 / sum(unit.n_params for unit in units)


# Of the default model: three balanced groups, three key/value heads with their k and v, or nine heads; FFNs in blocks
# of 32, 128 and 256 channels, some of them larger than a group of heads.
COARSE = [make_units([a, f] * 30, [n, c] * 30) for a, n in ((221184, 3), (294912, 3), (73728, 9)) for f, c in BLOCKS]


@given(st.sampled_from(COARSE), st.floats(0.02, 0.75), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_coarse_heads_and_large_blocks_meet_the_budget(mapping, units, sparsity, seed):
    scores = np.random.default_rng(seed).normal(size=len(units))
    sizes, n = (np.array([getattr(unit, name) for unit in units]) for name in ("group_params", "n_groups"))
    low, high = group_bounds(units, 0.2, 1.0)
    smallest = sizes.min() / (sizes @ n)
    allocation = allocate(scores, min(sparsity, reachable_sparsities(units, 0.2, 1.0)[1]), units, mapping=mapping)
    assert (low >= 1).all()
    assert ((low <= allocation.kept) & (allocation.kept <= high)).all()
    assert 0 <= allocation.sparsity - min(sparsity, reachable_sparsities(units, 0.2, 1.0)[1]) < smallest
    even = uniform(sparsity, units)
    assert even.sparsity - sparsity >= 0
    # What is to spare would buy no group of an FFN, nor of heads where not all of them stay.
    spare = (even.sparsity - sparsity) * (sizes @ n)
    assert spare < sizes[1] + 1
    assert spare < sizes[0] + 1 or (even.kept[::2] == n[::2]).all()


def test_ffn_only_leaves_attention_whole():
    allocation = ffn_only(0.2, llama_like())
    assert set(allocation.kept[::2]) == {9}
    assert allocation.kept[1::2].max() - allocation.kept[1::2].min() <= 1
    assert allocation.sparsity >= 0.2
    with pytest.raises(ValueError, match=r"FFNs are only 0\.8 of"):
        ffn_only(0.9, llama_like())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 0.85}, r"a_min=0\.2.*between 0 and 0\.\d"),
        ({"sparsity": -0.1}, r"must be between 0 and"),
        ({"sparsity": 0.05, "a_max": 0.9}, r"a_max=0\.9.*between 0\.1 and"),
        ({"sparsity": float("nan")}, r"must be between"),
        ({"scores": [0.0] * 11}, r"shape \(11,\), expected \(12,\)"),
        ({"scores": [float("nan")] * 12}, r"12 of 12 scores are not finite"),
        ({"a_min": 0.6, "a_max": 0.5}, r"0 ≤ a_min < a_max ≤ 1, got a_min=0\.6"),
        ({"a_min": 0.12, "a_max": 0.2}, r"no whole number of its 9 groups"),
        ({"mapping": "middle"}, r"allowed are paper, greedy, waterfill"),
    ],
)
def test_infeasible_input_says_what_would_do(arguments, message):
    arguments = {"scores": np.zeros(12), "sparsity": 0.2, **arguments}
    with pytest.raises(ValueError, match=message):
        allocate(arguments.pop("scores"), arguments.pop("sparsity"), llama_like(), **arguments)


@pytest.mark.parametrize("a_min", np.arange(0.0, 0.95, 0.1))
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_ends_of_the_feasible_range_are_feasible(a_min, mapping):
    for units in (llama_like(), make_units([64, 2] * 3, [10, 1500] * 3)):
        for sparsity in (*reachable_sparsities(units, a_min, 1.0), 1 - a_min if a_min else 0.5):
            if sparsity <= reachable_sparsities(units, a_min, 1.0)[1] + 1e-9:
                allocation = allocate(np.zeros(len(units)), sparsity, units, a_min=a_min, mapping=mapping)
                assert allocation.sparsity >= sparsity - 1e-9
