"""Budgets in which groups have costs of their own: what holds for any tables, and that parameters are one of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ffprune_env.budget.allocation import group_bounds, one_group, reachable_sparsities, settle
from ffprune_env.budget.cost_tables import CostTables
from ffprune_env.budget.even import BASELINES, ffn_only, uniform
from ffprune_env.budget.least_damage import least_damage
from ffprune_env.budget.mapping import allocate
from ffprune_env.budget.units import PruneUnit
from ffprune_env.methods.flap import threshold

MAPPINGS = ("paper", "greedy", "waterfill")
LLAMA = tuple(
    PruneUnit(f"unit {i}", kind, i // 2, n, n * size)
    for i, (kind, n, size) in enumerate([("attention", 3, 221184), ("ffn", 48, 55296)] * 8)
)


def with_tables(units, scale=1):
    """The same units, whose parameters are costs."""
    return tuple(
        replace(unit, costs=tuple(scale * unit.group_params * k for k in range(unit.n_groups + 1))) for unit in units
    )


@st.composite
def priced_problems(draw):
    units = []
    for i in range(draw(st.integers(1, 5))):
        n = draw(st.integers(1, 8))
        steps = draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
        costs = tuple(itertools.accumulate(steps, initial=draw(st.integers(0, 20))))
        units.append(PruneUnit(f"unit {i}", "attention" if i % 2 else "ffn", i, n, n, 0, costs))
    assume(any(unit.weight for unit in units))
    a_min, a_max = draw(st.sampled_from([(0.0, 1.0), (0.2, 1.0), (0.0, 0.8), (0.3, 0.9)]))
    try:
        lowest, highest = reachable_sparsities(units, a_min, a_max)
    except ValueError:  # no whole number of groups between the bounds
        assume(False)
    scores = draw(st.lists(st.floats(-3, 3), min_size=len(units), max_size=len(units)))
    return scores, draw(st.floats(lowest, highest)), tuple(units), a_min, a_max


def affordable_steps(allocation, sparsity, units, a_max):
    """Units that could keep more within the budget."""
    total = sum(unit.weight for unit in units)
    _, high = group_bounds(units, 0.0, a_max)
    left = (
        sum(unit.costs[-1] - unit.costs[k] for unit, k in zip(units, allocation.kept, strict=True)) - sparsity * total
    )
    return [
        unit.name
        for unit, k, most in zip(units, allocation.kept, high, strict=True)
        if k < most and unit.costs[k + 1] - unit.costs[k] <= left - 1e-6
    ]


@settings(max_examples=300)
@given(priced_problems())
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_any_costs_are_met_and_nothing_that_fits_is_left_out(mapping, problem):
    scores, sparsity, units, a_min, a_max = problem
    allocation = allocate(scores, sparsity, units, a_min=a_min, a_max=a_max, mapping=mapping)
    low, high = group_bounds(units, a_min, a_max)
    assert (allocation.kept >= low).all()
    assert (allocation.kept <= high).all()
    total = sum(unit.weight for unit in units)
    saved = sum(unit.costs[-1] - unit.costs[k] for unit, k in zip(units, allocation.kept, strict=True))
    assert allocation.sparsity == saved / total
    assert allocation.sparsity >= min(sparsity, reachable_sparsities(units, a_min, a_max)[1])
    assert not affordable_steps(allocation, sparsity, units, a_max)


@given(priced_problems())
def test_the_least_damage_is_found_and_is_within_the_costs(problem):
    _, sparsity, units, a_min, a_max = problem
    curves = [np.cumsum(np.random.default_rng(unit.n_groups).random(unit.n_groups + 1))[::-1] for unit in units]
    found = least_damage(curves, sparsity, units, a_min=a_min, a_max=a_max)
    low, high = group_bounds(units, a_min, a_max)
    sparsity, total = min(sparsity, reachable_sparsities(units, a_min, a_max)[1]), sum(x.weight for x in units)

    def saved(kept):
        return sum(unit.costs[-1] - unit.costs[k] for unit, k in zip(units, kept, strict=True)) / total

    def damage(kept):
        return sum(curve[k] for curve, k in zip(curves, kept, strict=True))

    every = itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))
    least = min(damage(kept) for kept in itertools.islice(every, 40_000) if saved(kept) >= sparsity)
    assert found.sparsity == saved(found.kept) >= sparsity
    assert damage(found.kept) <= least + 1e-9


@pytest.mark.parametrize("sparsity", [0.05, 0.2, 0.35, 0.5])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_parameters_as_costs_give_nearly_the_allocation_of_parameters(mapping, sparsity):
    """Rates are as continuous as groups are there; what rounding leaves goes by the same rule, from another start."""
    for seed in range(40):
        scores = np.random.default_rng(seed).normal(size=len(LLAMA))
        plain = allocate(scores, sparsity, LLAMA, mapping=mapping)
        priced = allocate(scores, sparsity, with_tables(LLAMA, 3), mapping=mapping)
        apart = np.abs(plain.kept - priced.kept)
        assert plain.sparsity == priced.sparsity
        if mapping == "waterfill":
            assert apart[::2].sum() <= 1  # heads
            assert apart[1::2].sum() <= 16  # blocks of channels, of which a head is worth four
        else:
            assert (apart > 0).sum() <= 4  # around the one unit between the bounds


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("sparsity", [0.05, 0.1, 0.2, 0.3, 0.4])
def test_baselines_at_parameters_as_costs_are_those_of_parameters(name, sparsity):
    plain, priced = (BASELINES[name](sparsity, units) for units in (LLAMA, with_tables(LLAMA, 2)))
    np.testing.assert_array_equal(plain.kept, priced.kept)


def test_what_costs_nothing_is_kept():
    units = tuple(replace(x, costs=tuple(range(4)) if x.kind == "attention" else (7,) * 49) for x in LLAMA)
    for find in (uniform, lambda sparsity, x: allocate(np.zeros(len(x)), sparsity, x)):
        allocation = find(1 / 3, units)
        assert [k for k, unit in zip(allocation.kept, units, strict=True) if unit.kind == "ffn"] == [48] * 8
        assert allocation.sparsity == 1 / 3
    with pytest.raises(ValueError, match="the FFNs are only 0 of what counts"):
        ffn_only(1 / 3, units)


def test_a_step_that_costs_nothing_is_always_taken():
    """Where a format pads, a count between two steps is never kept."""
    padded = tuple(replace(x, costs=tuple(-(-k // 4) for k in range(x.n_groups + 1))) for x in LLAMA)
    ends = [{0, *range(4, unit.n_groups, 4), unit.n_groups} for unit in padded]
    for seed in range(20):
        scores = np.random.default_rng(seed).normal(size=len(padded))
        found = [allocate(scores, 0.3, padded, mapping=mapping).kept for mapping in MAPPINGS]
        metric = [np.random.default_rng(seed).random(unit.n_groups) for unit in padded]
        found += [settle(found[0] - 1, scores, 0.3, padded).kept, threshold(metric, 0.3, padded).kept]
        for kept in found:
            assert all(k in end for k, end in zip(kept, ends, strict=True))


@pytest.mark.parametrize("mapping", ["paper", "greedy"])
def test_with_its_last_group_the_rest_of_a_unit_goes(mapping):
    units = tuple(replace(unit, rest_params=100_000) for unit in LLAMA)
    scores = np.array([-3.0 if unit.layer in (2, 5) else 3.0 for unit in units])
    whole = allocate(scores, 0.25, units, a_min=0.0, mapping=mapping)
    assert set(whole.kept[4:6]) == {0}  # the lowest scores
    tables, total = CostTables.of_units(units), sum(unit.n_params for unit in units)
    gone = sum(unit.group_params * (unit.n_groups - k) for unit, k in zip(units, whole.kept, strict=True))
    assert whole.sparsity == (gone + 100_000 * (whole.kept == 0).sum()) / total == tables.saved(whole.kept) / total
    assert 0 <= whole.sparsity - 0.25 < 221184 / total
    least = one_group(units)
    np.testing.assert_array_equal(
        allocate(scores, 0.25, units, a_min=least, mapping=mapping).kept,
        allocate(scores, 0.25, LLAMA, a_min=least, mapping=mapping).kept,
    )


def test_costs_that_are_no_costs_are_refused():
    with pytest.raises(ValueError, match=r"2 costs; those of 0, 1, \.\.\. 3 groups are 4"):
        replace(LLAMA[0], costs=(1, 2))
    with pytest.raises(ValueError, match="never fall"):
        replace(LLAMA[0], costs=(0, 3, 2, 4))


@given(st.integers(0, 2**16), st.floats(0.05, 0.7), st.integers(1, 10**6))
def test_the_least_damage_is_that_of_groups_where_none_is_the_last(seed, sparsity, rest):
    rng = np.random.default_rng(seed)
    curves = [np.cumsum(rng.random(unit.n_groups + 1))[::-1] for unit in LLAMA]
    more = tuple(replace(unit, rest_params=int(rest * rng.random())) for unit in LLAMA)
    np.testing.assert_array_equal(least_damage(curves, sparsity, LLAMA).kept, least_damage(curves, sparsity, more).kept)
    np.testing.assert_allclose(CostTables.of_units(LLAMA).mean_cost(), CostTables.of_units(more).mean_cost())
