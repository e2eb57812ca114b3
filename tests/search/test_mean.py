"""The way from an allocation to the mean of a policy and back: how much is lost on it."""

from __future__ import annotations

import numpy as np
import pytest

from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.budget.mapping import allocate_rates
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.search.mean import mean_actions, mean_allocation, mean_scores, scores_of
from ffprune_env.search.policy import make_env, make_policy
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import run_search
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.parse import parse_start

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
    targets = {at: scores_of(x, **settings.bounds) for at, x in allocations.items()}
    actions = mean_actions(targets, settings.action_scale)
    policy = make_policy(settings, make_env(settings, EVALUATOR), actions)
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


@pytest.mark.parametrize("seed", range(3))
def test_of_several_sparsities_every_one_comes_back_as_near_as_a_single_one(seed):
    """However crooked the way between them: allocations of other units at every σ."""
    given = {at: uneven(at, 10 * seed + i) for i, at in enumerate((0.1, 0.2, 0.3, 0.5))}
    for at, back in come_back(tuple(given), given).items():
        alone = come_back(at, {at: given[at]})[at]
        np.testing.assert_array_equal(back.kept, alone.kept)


def test_what_is_learned_at_one_sparsity_goes_to_all_and_what_the_start_knows_stays():
    """One update at σ = 0.1 moves the mean at σ = 0.5 about half as far, and the differences that were there stay."""
    settings = SearchSettings(sparsity=(0.1, 0.5), init="ffn-only", evaluations=8)
    rng = np.random.default_rng(0)
    actions = {at: rng.uniform(-0.5, 0.5, len(UNITS)) for at in (0.1, 0.3, 0.5)}
    policy = make_policy(settings, make_env(settings, EVALUATOR), actions)
    policy.env.env_method("set_task", 0.1)
    policy.learn(8)
    moved = {at: mean_scores(policy, at, 1.0) - x for at, x in actions.items()}
    assert np.abs(moved[0.1]).min() > 0.01
    np.testing.assert_allclose(moved[0.3], (moved[0.1] + moved[0.5]) / 2, atol=2e-3)
    assert np.corrcoef(moved[0.1], moved[0.5])[0, 1] > 0.99
    assert 0.3 < np.linalg.norm(moved[0.5]) / np.linalg.norm(moved[0.1]) < 0.7


def searched(noise):
    """The policy of a search of 512 evaluations on an invented model, a window for each rollout."""
    evaluator = SurrogateEvaluator.synthetic(12, seed=1, noise=noise, pool=64)
    settings = SearchSettings(sparsity=0.3, init="ffn-only", evaluations=512, search_windows=1)
    start = parse_start(settings)
    scores = start.scores(Problem.of(evaluator, 0.3), settings.targets)
    return run_search(settings, evaluator, start, scores).policy


def test_all_units_share_a_deviation_that_falls_near_the_best_and_less_where_measurements_are_noisy():
    """The last steps of a long search are small, and candidates differ by more than they are measured wrong."""
    exact, noisy = searched(0.0), searched(0.5)
    assert exact.policy.log_std.shape == (1,)
    assert any(exact.policy.log_std is x for group in exact.policy.optimizer.param_groups for x in group["params"])
    assert exact.policy.log_std.item() < SearchSettings().log_std_init - 0.5
    assert noisy.policy.log_std.item() > exact.policy.log_std.item() + 0.3


def test_the_paper_s_network_starts_from_nothing_and_learns_its_deviation():
    settings = SearchSettings(network="mlp", init="none", evaluations=8)
    settings.require_allowed()
    policy = make_policy(settings, make_env(settings, EVALUATOR), {0.2: np.zeros(len(UNITS))})
    assert np.abs(mean_scores(policy, 0.2, 1.0)).max() < 0.1
    assert policy.policy.log_std.requires_grad
    assert policy.policy.log_std.shape == (len(UNITS),)
    assert [layer.out_features for layer in policy.policy.mlp_extractor.policy_net if hasattr(layer, "bias")] == [
        256,
        128,
    ]
    with pytest.raises(ValueError, match="--network mlp starts from nothing or a run: --init must be none or "):
        SearchSettings(network="mlp", init="fisher").require_allowed()
