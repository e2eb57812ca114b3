"""The way from an allocation to the mean of a policy and back: how much is lost on it."""

from __future__ import annotations

import numpy as np
import pytest

from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.budget.mapping import allocate_rates
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.search.mean import mean_actions, mean_allocation, scores_of
from ffprune_env.search.policy import make_env, make_policy
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.known import FfnOnly
from ffprune_env.search.starts.start import StartScores

#: The units of smollm2-135m with FFN channels in blocks of 32: 9 heads, 48 blocks.
UNITS = tuple(
    PruneUnit(f"{kind} {i}", kind, i, n, n * params)
    for i in range(30)
    for kind, n, params in (("attention", 9, 2 * 64 * 576), ("ffn", 48, 3 * 32 * 576))
)
EVALUATOR = SurrogateEvaluator(UNITS, [np.linspace(1, 0, unit.n_groups + 1) for unit in UNITS])


def uneven(sparsity, seed):
    """Rates from the lowest to the highest that are allowed, as a search leaves them."""
    return allocate_rates(np.random.default_rng(seed).uniform(0.1, 1.3, len(UNITS)), sparsity, UNITS)


def come_back(sparsity, allocations):
    """What a policy's mean keeps, after it was given allocations by sparsity as its start."""
    settings = SearchSettings(sparsity=sparsity, init="ffn-only")
    policy = make_policy(settings, make_env(settings, EVALUATOR))
    targets = {at: scores_of(x, **settings.bounds) for at, x in allocations.items()}
    FfnOnly().move_mean(policy, mean_actions(StartScores(targets), settings.action_scale))
    return {at: mean_allocation(SearchSettings(sparsity=at), UNITS, policy) for at in allocations}


@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("start", ["ffn-only", 0, 1, 2, 3, 4])
def test_the_mean_keeps_what_the_start_does_to_the_head_and_within_four_blocks(sparsity, start):
    """Four units in five come back as they were, and no head is lost."""
    given = ffn_only(sparsity, UNITS) if start == "ffn-only" else uneven(sparsity, start)
    back = come_back(sparsity, {sparsity: given})[sparsity]
    off = np.abs(back.kept - given.kept)
    assert off[0::2].max() == 0
    assert off[1::2].max() <= (0 if start == "ffn-only" else 4)
    assert (off == 0).mean() >= 0.8
    assert back.sparsity == pytest.approx(given.sparsity, abs=1e-3)


@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.3, 0.5])
def test_equal_rates_are_ties_and_one_ffn_or_two_get_what_is_left_over(sparsity):
    """`uniform` spreads what whole blocks leave over; the mapping gives it to the FFNs that rounding put first."""
    given = uniform(sparsity, UNITS)
    back = come_back(sparsity, {sparsity: given})[sparsity]
    off = back.kept - given.kept
    assert np.abs(off[0::2]).max() == 0
    assert off[1::2].min() >= -1
    assert (off[1::2] > 0).sum() <= 2


def test_of_several_sparsities_the_mean_is_as_near_as_a_line_in_sigma():
    """`ffn-only` is a line in σ in its rates, and nearly one in its scores."""
    sparsities = (0.1, 0.2, 0.3, 0.4)
    given = {at: ffn_only(at, UNITS) for at in sparsities}
    back = come_back(sparsities, given)
    assert max(np.abs(back[at].kept - given[at].kept).max() for at in sparsities) <= 2
