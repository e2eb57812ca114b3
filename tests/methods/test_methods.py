"""Every method answers the same problem within its budget; searches find what there is to find."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from ffprune_env.budget.allocation import group_bounds, settle
from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.budget.mapping import allocate, allocate_rates
from ffprune_env.budget.units import PruneUnit
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators import language_model as evaluator_module
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.methods.ablations import ABLATIONS
from ffprune_env.methods.evopress import draw_children, swap_levels
from ffprune_env.methods.flap import flap, threshold
from ffprune_env.methods.registry import METHODS
from ffprune_env.pruning import damage as damage_module
from ffprune_env.pruning.backward import back_propagate
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.units import find_units
from ffprune_env.search.ppo import choose, make_policy, ppo, start_means
from ffprune_env.search.problem import BudgetSpentError, Meter, Problem
from ffprune_env.search.samples import Archive, Sample
from ffprune_env.search.saved_policy import save_policy
from ffprune_env.search.settings import SearchSettings, affordable
from ffprune_env.search.starts import start as starts_module
from ffprune_env.search.starts.fisher import least_damage
from ffprune_env.search.starts.fisher_iterated import iterate, step_windows
from ffprune_env.search.starts.start import cheap_enough, start_cost, start_scores

ALL = METHODS | ABLATIONS
SEARCHES = [name for name, method in ALL.items() if method.searches]
CURVES = SurrogateEvaluator.synthetic(n_layers=6, seed=3)


def on_curves(evaluations: int, seed: int = 0, sparsity: float = 0.3) -> Problem:
    return Problem(None, None, Meter(CURVES, evaluations), sparsity, seed)


@pytest.fixture
def on_model(windows: torch.Tensor) -> Problem:
    prunable = PrunableModel(tiny_model("llama-gqa"))
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    evaluator = LMEvaluator(prunable, windows, texts={"finalists": windows.flip(1)})
    return Problem(prunable, stats, Meter(evaluator, 40), 0.3, 0, windows=windows)


@pytest.mark.parametrize("name", ALL)
def test_answers_meet_the_budget_of_parameters_and_of_windows(name, on_model):
    meter = on_model.meter
    allocation = ALL[name].answer(on_model)
    cheapest = min(unit.group_params for unit in meter.units)
    total = sum(unit.n_params for unit in meter.units)
    assert 0.3 <= allocation.sparsity < 0.3 + cheapest / total
    assert meter.spent <= meter.budget
    # Finalists that keep the same are measured once, so a little may be left.
    assert (meter.spent > 0.75 * meter.budget) == ALL[name].searches
    if ALL[name].searches:
        low, high = group_bounds(meter.units, on_model.a_min, on_model.a_max)
        assert (low <= allocation.kept).all()
        assert (allocation.kept <= high).all()
        assert meter.trace[-1][1].tolist() == allocation.kept.tolist()
    on_model.prunable.require_dense("leave")


@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "ppo-fisher-start"])  # it needs a model
def test_the_seed_decides(name):
    first, again, other = (ALL[name].answer(on_curves(60, seed)).kept for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def damage(kept) -> float:
    """Of an allocation of 30 %, as a multiple of the least there is under the same bounds."""
    best = least_damage(CURVES.curves, 0.3, CURVES.units)
    return CURVES.compare(kept, 1)[1] / CURVES.compare(best.kept, 1)[1]


@pytest.mark.parametrize(
    ("name", "most"), [("evolution", 1.3), ("evopress", 1.3), ("cma-es", 1.3), ("ppo", 2.0), ("random", 3.0)]
)
def test_searches_come_near_the_optimum(name, most):
    """`uniform` damages eighteen times as much as needed, so being better than that would prove little."""
    assert damage(uniform(0.3, CURVES.units).kept) > 10
    assert damage(ALL[name].answer(on_curves(300)).kept) < most


def test_every_search_but_random_is_at_least_as_good_as_its_start():
    start = on_curves(0).allocate(on_curves(0).start())
    for name in ("evolution", "evopress", "cma-es", "ppo"):
        assert damage(METHODS[name].answer(on_curves(14)).kept) <= damage(start.kept) + 1e-9


def test_a_swap_can_reach_every_number_of_heads():
    """Units shaped as in smollm2-135m: a head is a thirty-sixth of an FFN."""
    units = tuple(
        PruneUnit(f"{kind} {i}", kind, i, n, n * size)
        for i in range(4)
        for kind, n, size in (("attention", 9, 73728), ("ffn", 1536, 1728))
    )
    curves = [np.zeros(unit.n_groups + 1) for unit in units]
    problem = Problem(None, None, Meter(SurrogateEvaluator(units, curves), 0), 0.3, 0)
    rng, parent, seen = np.random.default_rng(0), problem.allocate(problem.start()), set()
    for _ in range(400):
        parent = swap_levels(problem, parent, rng)
        seen |= {int(k) for unit, k in zip(units, parent.kept, strict=True) if unit.kind == "attention"}
    assert seen == set(range(2, 10))


@pytest.mark.parametrize("name", ["random", "evolution", "evopress", "cma-es"])
def test_what_is_noted_only_gets_better(name):
    problem = on_curves(100)
    METHODS[name].answer(problem)
    noted = [CURVES.compare(kept, 1)[1] for _, kept in problem.meter.trace]
    assert noted == sorted(noted, reverse=True)
    assert len(noted) > 1


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_without_a_budget_says_what_it_needs(name):
    with pytest.raises(ValueError, match="needs a budget of at least"):
        ALL[name].answer(on_curves(0))


def test_nothing_is_measured_beyond_the_budget():
    meter = Meter(CURVES, 1)
    kept = uniform(0.3, CURVES.units).kept
    meter.measure(kept, 3)
    meter.compare(kept, 5)
    with pytest.raises(BudgetSpentError, match="1 windows asked for, 0 of 8 are left"):
        meter.measure(kept, 1)
    assert meter.spent == 8
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Meter(CURVES, -1)


@pytest.mark.parametrize("init", ["none", "ffn-only", "fisher", "fisher-iterated"])
def test_a_policy_starts_where_it_is_told(on_model, init):
    settings = SearchSettings(sparsity=0.3, samples=3, init=init)
    starts = start_scores(settings, on_model)
    start = starts[0.3]
    mapped = allocate(start, 0.3, on_model.meter.units, a_min=0.2, mapping="waterfill")
    methods = {"none": "uniform", "ffn-only": "ffn-only", "fisher": "fisher", "fisher-iterated": "fisher-iterated"}
    asked = METHODS[methods.pop(init)].answer(on_model)
    assert np.abs(mapped.kept - asked.kept).max() <= 1  # of 4 heads or 24 channels
    env = PruneBanditEnv(on_model.meter, 0.3)
    policy = make_policy(settings, env, starts)
    action, _ = policy.predict(np.array([0.3], dtype=np.float32), deterministic=True)
    np.testing.assert_allclose(action * settings.action_scale, np.clip(start, -2.4, 2.4), atol=0.02)
    others = [METHODS[name].answer(on_model).kept for name in methods.values() if "fisher" not in name]
    assert all(np.abs(mapped.kept - other).max() > 1 for other in others)


@pytest.mark.parametrize("init", ["ffn-only", "fisher", "fisher-iterated"])
def test_a_policy_starts_with_knowledge_of_the_sparsities_around_its_target(on_model, init):
    settings = SearchSettings(sparsity=0.3, samples=3, init=init)
    starts = start_scores(settings, on_model)
    assert len(starts) > 3
    policy = make_policy(settings, PruneBanditEnv(on_model.meter, 0.3), starts)
    line, constant = 0.0, 0.0
    for at, scores in starts.items():
        mean, _ = policy.predict(np.array([at], dtype=np.float32), deterministic=True)
        line += float(np.square(3 * mean - np.clip(scores, -2.4, 2.4)).sum())
        constant += float(np.square(np.clip(starts[0.3], -2.4, 2.4) - np.clip(scores, -2.4, 2.4)).sum())
    assert line < 0.9 * constant


@pytest.mark.parametrize(("target", "half_way"), [(0.2, False), (0.3, True)])
def test_the_steps_after_another_run_begin_where_that_leads(on_model, tmp_path, monkeypatch, target, half_way):
    """At a target that it was trained for; half-way from there to `fisher` at others, which it only guesses."""
    settings = SearchSettings(sparsity=0.2, samples=3, init="ffn-only")
    units, starts = on_model.meter.units, start_scores(settings, replace(on_model, sparsity=0.2))
    policy = make_policy(settings, PruneBanditEnv(on_model.meter, 0.2), starts)
    (tmp_path / "checkpoints").mkdir()
    means = start_means(settings, starts)
    save_policy(policy, tmp_path / "checkpoints", units, settings.meaning(), settings.targets, means)
    begun = []
    monkeypatch.setattr(starts_module, "iterate", lambda *a: begun.append(a[2]) or iterate(*a))
    asked = replace(on_model, sparsity=target)
    transfer = replace(settings, sparsity=target, init=str(tmp_path))
    start_scores(transfer, asked)
    expected = ffn_only(target, units).rates
    if half_way:
        expected = (expected + METHODS["fisher"].answer(asked).rates) / 2
    groups = np.array([unit.n_groups for unit in units])
    assert np.abs(begun[0].kept - groups * expected).max() <= 1.5  # of 4 heads or 24 channels
    assert start_cost(transfer, asked) == 3 * 4 * 3  # as many sets of curves as for `fisher` and three steps


def test_a_target_out_of_reach_costs_the_others_nothing(on_model):
    settings = SearchSettings(sparsity=(0.1, 0.7), init="ffn-only", a_min=0.05)
    starts = start_scores(settings, replace(on_model, a_min=0.05))
    assert not starts[0.7].any()
    assert starts[0.1].any()


def test_one_look_serves_several_targets(on_model, monkeypatch):
    looks = []
    monkeypatch.setattr(damage_module, "back_propagate", lambda *a: looks.append(back_propagate(*a)))
    settings = SearchSettings(sparsity=(0.1, 0.2, 0.3), init="fisher", a_min=0.2)
    starts = start_scores(settings, on_model)
    assert list(starts) == [0.1, 0.2, 0.3]
    assert len(looks) == len(on_model.windows)
    for target, scores in starts.items():
        alone = METHODS["fisher"].answer(replace(on_model, sparsity=target))
        mapped = allocate(scores, target, on_model.meter.units, a_min=0.2, mapping="waterfill")
        assert np.abs(mapped.kept - alone.kept).max() <= 1


@pytest.mark.parametrize("windows", [90, 200, 1000])
def test_ppo_runs_as_many_rollouts_as_the_windows_last(windows):
    settings = SearchSettings(samples=4, n_steps=8)
    affording = affordable(settings, windows)
    assert affording.windows() <= windows
    assert affording.timesteps % settings.n_steps == 0
    longer = affordable(settings, affording.windows() + 8 * 4)  # a rollout more always fits in eight evaluations more
    assert longer.timesteps > affording.timesteps
    finals = 8 * 4 + sum(rivals * n for rivals, n in settings.rounds(8))
    assert affording.timesteps > (windows - finals) / 4 - 9  # the curriculum buys evaluations


def test_flap_keeps_what_stands_out_in_its_unit_at_the_price_of_its_parameters():
    units = CURVES.units[:4]  # two layers: 8 heads of 512, 256 channels of 48 parameters
    scores = [np.full(unit.n_groups, -1.0) for unit in units]
    scores[0][:6] = 3.0
    scores[1][:100] = 2.0
    scores[3][:40] = 1.0
    price = 6 * units[0].group_params + 140 * units[1].group_params
    total = sum(unit.n_params for unit in units)
    allocation = threshold(scores, 1 - price / total, units)
    # One head of unit 2 stays in any case, and is paid for by the channels that stand out least.
    heads = math.ceil(units[2].group_params / units[1].group_params)
    assert allocation.kept.tolist() == [6, 100, 1, 40 - heads]


def test_a_head_of_llama_7b_costs_what_its_authors_say():
    """FLAP's code counts a head of that model as 512 / 3 channels."""
    config = AutoConfig.for_model("llama", num_hidden_layers=1)  # the defaults are those of LLaMA-7B
    with torch.device("meta"):
        attention, ffn = (layout.unit for layout in find_units(AutoModelForCausalLM.from_config(config)))
    assert (attention.n_groups, ffn.n_groups) == (32, 11008)
    assert Fraction(attention.group_params, ffn.group_params) == Fraction(512, 3)


def test_flap_standardizes_within_a_unit(on_model):
    """Scaling the inputs of one unit a thousandfold changes no other unit's share."""
    before = METHODS["flap"].answer(on_model).kept
    stats = on_model.stats
    stats.square_norms[3].mul_(1e6)
    stats.means[3].mul_(1e3)
    assert METHODS["flap"].answer(on_model).kept.tolist() == before.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_flap_keeps_what_its_authors_formula_keeps(seed, windows):
    """Their steps one by one on the activations themselves, up to the first head or channel that does not fit."""
    prunable = PrunableModel(tiny_model("llama", seed))
    inputs, hooks = [], []
    for layout in prunable.layouts:
        hooks.append(layout.output.register_forward_pre_hook(lambda _, x: inputs.append(x[0].flatten(0, -2).numpy())))
    with torch.no_grad():
        prunable.model(windows)
    for hook in hooks:
        hook.remove()
    entries = []  # (score, unit, parameters) of every head and channel
    for i, (layout, x) in enumerate(zip(prunable.layouts, inputs, strict=True)):
        metric = x.var(axis=0) * np.square(layout.output.weight.detach().numpy()).sum(axis=0)
        metric = metric**2 if layout.unit.kind == "attention" else metric
        metric = (metric - metric.mean()) / metric.std(ddof=1)
        entries += [(z, i, layout.unit.group_params) for z in metric.reshape(layout.n_members, -1).mean(axis=1)]
    left, expected = 0.7 * sum(price for _, _, price in entries), np.zeros(6, dtype=int)
    for _, i, price in sorted(entries, reverse=True):
        left -= price
        if left < 0:
            break
        expected[i] += 1
    stats = collect_statistics(prunable, windows, gram=False)
    found = flap(Problem(prunable, stats, Meter(LMEvaluator(prunable, windows), 0), 0.3, 0)).kept
    assert expected.min() > 0
    assert (found >= expected).all()
    prices = [unit.group_params for unit in prunable.units]
    assert (found - expected) @ prices < max(prices)  # what is left of the budget goes to channels


@pytest.mark.parametrize(
    ("name", "needs"), [("flap", "a model and its statistics"), ("fisher", "a model and search text")]
)
def test_who_looks_at_the_model_needs_one(name, needs):
    with pytest.raises(ValueError, match=f"needs {needs}"):
        METHODS[name].answer(on_curves(0))


def test_no_window_is_spent_on_a_child_that_was_measured_already():
    """Two layers of four heads and eight channels: many draws are of the few neighbours that there are."""
    units = tuple(
        PruneUnit(f"{kind} {i}", kind, i, n, 16) for i in range(2) for kind, n in (("attention", 4), ("ffn", 8))
    )
    curves = SurrogateEvaluator(units, [np.zeros(unit.n_groups + 1) for unit in units])
    problem = Problem(None, None, Meter(curves, 0), 0.4, 0)
    parent, rng = problem.allocate(problem.start()), np.random.default_rng(0)
    drawn = {tuple(swap_levels(problem, parent, rng).kept) for _ in range(8)}
    assert len({*drawn, tuple(parent.kept)}) < 9
    for n in (1, 4, 8):
        children = {tuple(child.kept) for child in draw_children(problem, parent, n, rng)}
        assert len({*children, tuple(parent.kept)}) == n + 1
    alone = replace(problem, sparsity=0.0)
    assert draw_children(alone, alone.allocate(np.ones(4)), 8, rng) == []


def test_a_swap_moves_whole_levels_and_keeps_the_budget():
    problem = on_curves(0)
    parent = problem.allocate(problem.start())
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(50):
        child = swap_levels(problem, parent, rng)
        assert child.sparsity >= 0.3
        moved = np.abs(child.rates - parent.rates)
        changed += bool(moved.max() > 0)
        assert (moved > 0.02).sum() <= 6  # three swaps touch six units; what settles the rest is small
    assert changed > 40


def test_rates_that_meet_the_budget_stay():
    rates = uniform(0.3, CURVES.units).rates
    allocation = allocate_rates(rates, 0.3, CURVES.units)
    heads = np.array([unit.kind == "attention" for unit in CURVES.units])
    assert np.abs(allocation.rates - rates)[heads].max() == 0
    assert np.abs(allocation.rates - rates).max() < 0.01


def test_settling_takes_from_the_lowest_and_gives_to_the_highest():
    units = CURVES.units
    even = uniform(0.3, units).kept
    priority = np.arange(len(units))
    more = even.copy()
    more[5] += 20
    settled = settle(more, priority, 0.3, units).kept
    assert settled[1] < even[1]  # the lowest FFN pays
    assert (settled[2:] >= more[2:]).all()


def test_iterating_improves_on_the_curves_of_the_dense_model(windows):
    """On the text that the curves were made from, which for a random model is all there is to learn."""
    prunable = PrunableModel(tiny_model("llama", seed=2))
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    evaluator = LMEvaluator(prunable, windows, statistics=stats)
    problem = Problem(prunable, stats, Meter(evaluator, 0), 0.4, 0, windows=windows.repeat(3, 1))
    once, iterated = (METHODS[name].answer(problem).kept for name in ("fisher", "fisher-iterated"))
    assert evaluator.measure(iterated, 3) < evaluator.measure(once, 3)


def test_steps_see_other_text_than_the_steps_next_to_them():
    windows = torch.arange(16)[:, None].expand(16, 1024)
    seen = [step_windows(windows, step)[:, 0].tolist() for step in range(8)]
    assert sorted(x for step in seen[:4] for x in step) == list(range(16))
    assert seen[4:] == seen[:4]
    assert all(max(x) - min(x) == 12 for x in seen)  # spread over all of it
    assert step_windows(windows[:3], 5).shape == (3, 1024)


def test_ppo_never_ends_behind_ffn_only_on_search_text():
    """A start from nothing and eight evaluations find little; the simple answer is a finalist."""
    for seed in range(3):
        problem = on_curves(40, seed=seed)
        found = ppo(problem, SearchSettings(init="none", samples=1))
        assert CURVES.measure(found.kept, 1) <= CURVES.measure(ffn_only(0.3, CURVES.units).kept, 1) * (1 + 1e-3)


def test_finalists_are_halved_while_their_text_doubles():
    settings = SearchSettings(samples=4, final_samples=16)
    assert settings.rounds(8) == [(8, 8), (4, 16)]
    assert settings.rounds(1) == [(1, 8)]
    assert SearchSettings(samples=4, final_samples=4).rounds(8) == [(8, 4)]


def test_luck_on_the_windows_of_the_search_does_not_count():
    """A sample of a reward that nothing comes near is only as good as it is on the windows for finalists."""
    settings = SearchSettings(sparsity=0.3, samples=2, final_samples=8, init="ffn-only")
    start, lucky = np.zeros(len(CURVES.units)), np.linspace(-1, 1, len(CURVES.units))
    policy = make_policy(settings, PruneBanditEnv(CURVES, 0.3, 2), {0.3: start})
    kept, uniform_kept = (allocate(x, 0.3, CURVES.units, mapping="waterfill").kept for x in (lucky, start))
    known, asked = {kept.tobytes(): 3.1, uniform_kept.tobytes(): 3.0}, []

    def measure_final(some, n):
        asked.append(n)
        return math.exp(known.get(some.tobytes(), 4.0))

    archive = Archive(0.3)
    archive(Sample(0, 0.3, 2, lucky, kept, kept / 1.0, 0.3, 2.7, 2.0, 0.9, False, 0.1))
    _, chosen = choose(settings, CURVES.units, start, policy, archive, measure_final)
    np.testing.assert_array_equal(chosen.kept, uniform_kept)
    assert asked == [4, 4, 4, 8, 8]  # the start, which is the policy's mean, ffn-only, the sample; then the best two


@pytest.mark.parametrize("name", [*METHODS, "ppo-fisher-start"])
def test_nobody_sees_the_windows_of_the_finalists_before_they_are_ranked(name, on_model, monkeypatch):
    finalists, read = {tuple(x) for x in on_model.meter.evaluator.texts["finalists"].tolist()}, []
    measures = [(evaluator_module, name) for name in ("perplexity", "compare_with_dense", "final_hidden_states")]
    for module, function in (*measures, (damage_module, "back_propagate")):
        real = getattr(module, function)

        def record(model, windows, *arguments, real=real):
            read.extend(tuple(x) in finalists for x in windows.tolist())
            return real(model, windows, *arguments)

        monkeypatch.setattr(module, function, record)
    ALL[name].answer(on_model)
    assert sorted(read) == read  # first what they may see, then the finalists' alone
    assert any(read) == name.startswith("ppo")
    assert bool(read) == (name not in ("uniform", "ffn-only", "flap", "flap-bias"))


def test_an_evaluator_without_windows_for_finalists_is_refused(on_model):
    evaluator = LMEvaluator(on_model.prunable, on_model.windows)
    with pytest.raises(ValueError, match="windows that no search saw: the evaluator needs finalists"):
        ppo(replace(on_model, meter=Meter(evaluator, 40)))


def test_what_is_looked_at_is_charged_more_than_it_is_seen(on_model):
    """A backward pass costs two forward passes: windows are seen once and charged as three."""
    for name, looks in (("fisher", 1), ("fisher-iterated", 9)):
        problem = replace(on_model, meter=Meter(on_model.meter.evaluator, 0))
        METHODS[name].answer(problem)
        assert (problem.meter.seen, problem.meter.spent) == (3 * looks, 9 * looks)


@pytest.mark.parametrize("name", [*SEARCHES, "fisher-iterated"])
def test_what_the_evaluator_remembers_is_charged_and_not_read(name, on_model, monkeypatch):
    """Few allocations of so small a model differ: most of what is asked has been answered before."""
    read = []
    measures = [(evaluator_module, name) for name in ("perplexity", "compare_with_dense")]
    for module, function in (*measures, (damage_module, "back_propagate")):
        real = getattr(module, function)

        def count(model, windows, *arguments, real=real):
            read.append(len(windows))
            return real(model, windows, *arguments)

        monkeypatch.setattr(module, function, count)
    for n in range(1, on_model.meter.max_samples + 1):
        on_model.meter.dense(n)  # free, and remembered
    read.clear()
    ALL[name].answer(on_model)
    assert on_model.meter.seen == sum(read)
    assert (on_model.meter.spent > on_model.meter.seen) == (name != "random")


def test_a_start_that_the_budget_does_not_cover_gives_way(on_model):
    costs = {}
    for evaluations in (14, 1000):
        problem = replace(on_model, meter=Meter(on_model.meter.evaluator, evaluations))
        costs[evaluations] = start_cost(cheap_enough(SearchSettings(n_steps=4), problem), problem)
    assert costs[1000] == 3 * 9 * 3  # nine sets of curves of all three windows, forward and backward
    assert costs[14] < costs[1000]


def test_a_policy_of_several_targets_starts_at_all_of_them():
    """Its network is linear in σ at first: two targets are met, and a third between them nearly."""
    settings = SearchSettings(sparsity=(0.1, 0.3))
    env = PruneBanditEnv(CURVES, 0.3)
    rng = np.random.default_rng(0)
    starts = {target: rng.uniform(-2, 2, len(CURVES.units)) for target in settings.targets}
    policy = make_policy(settings, env, starts)
    for target, start in starts.items():
        action, _ = policy.predict(np.array([target], dtype=np.float32), deterministic=True)
        np.testing.assert_allclose(action * settings.action_scale, start, atol=1e-3)
    middle, _ = policy.predict(np.array([0.2], dtype=np.float32), deterministic=True)
    np.testing.assert_allclose(middle * settings.action_scale, (starts[0.1] + starts[0.3]) / 2, atol=1e-3)
