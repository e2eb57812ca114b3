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
from ffprune_env.budget.least_damage import least_damage
from ffprune_env.budget.mapping import allocate_rates
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators import language_model as evaluator_module
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.methods.ablations import ABLATIONS, PAPER_ABLATIONS
from ffprune_env.methods.evopress import draw_children, swap_levels
from ffprune_env.methods.flap import flap, threshold
from ffprune_env.methods.ppo import ppo
from ffprune_env.methods.registry import METHODS
from ffprune_env.pruning import damage as damage_module
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.units import find_units
from ffprune_env.search.meter import BudgetSpentError, Meter
from ffprune_env.search.problem import Problem
from ffprune_env.search.settings import SearchSettings

ALL = METHODS | ABLATIONS | PAPER_ABLATIONS
SEARCHES = [name for name, method in ALL.items() if method.searches]
CURVES = SurrogateEvaluator.synthetic(n_layers=6, seed=3)


def on_curves(evaluations: int, seed: int = 0, sparsity: float = 0.3) -> Problem:
    return Problem.of(CURVES, sparsity, evaluations=evaluations, seed=seed)


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
    # Finalists that keep the same are measured once, so a little may be left. A rollout of sixteen takes up to 40 % of
    # the budget, and where a_min is near the mean many samples of a tiny model keep the same.
    least = 0.5 if name.startswith("ppo-paper") else 0.75
    assert (meter.spent > least * meter.budget) == ALL[name].searches
    if ALL[name].searches:
        low, high = group_bounds(meter.units, on_model.a_min, on_model.a_max)
        assert (low <= allocation.kept).all()
        assert (allocation.kept <= high).all()
        assert meter.trace[-1][1].tolist() == allocation.kept.tolist()
    on_model.prunable.require_dense("leave")


@pytest.mark.parametrize("name", ALL)
def test_what_goes_with_a_last_group_changes_nothing_where_none_goes(name, on_model):
    """The budget is Σ w then, and the answer that of Σ w, to the group."""
    prunable = on_model.prunable
    assert any(unit.rest_params for unit in prunable.units)
    answer = ALL[name].answer(on_model)
    prunable.units = tuple(replace(unit, rest_params=0) for unit in prunable.units)
    again = ALL[name].answer(replace(on_model, meter=Meter(on_model.meter.evaluator, 40), learned=[]))
    if name != "depth":  # it drops whole layers
        assert answer.kept.tolist() == again.kept.tolist()
        assert answer.sparsity == again.sparsity


@pytest.mark.parametrize("name", ALL)
def test_answers_meet_any_costs(name, on_model):
    """Of which some steps are dear, some free, and heads cost other than channels do."""
    rng = np.random.default_rng(1)
    priced = [
        replace(unit, costs=tuple(int(x) for x in np.cumsum([3, *rng.integers(0, 9, unit.n_groups)])))
        for unit in on_model.units
    ]
    on_model.prunable.count(priced)
    allocation = ALL[name].answer(on_model)
    total = sum(unit.weight for unit in priced)
    gone = sum(unit.costs[-1] - unit.costs[k] for unit, k in zip(priced, allocation.kept, strict=True))
    assert allocation.sparsity == gone / total
    assert 0.3 <= allocation.sparsity <= 0.3 + 9 / total
    assert on_model.meter.spent <= on_model.meter.budget


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
    ("name", "most"),
    [("evolution", 1.3), ("eas", 1.3), ("evopress", 1.3), ("cma-es", 1.3), ("ppo", 2.0), ("random", 3.0)],
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
    problem = Problem.of(SurrogateEvaluator(units, curves), 0.3)
    rng, parent, seen = np.random.default_rng(0), problem.allocate(problem.start()), set()
    for _ in range(400):
        parent = swap_levels(problem, parent, rng)
        seen |= {int(k) for unit, k in zip(units, parent.kept, strict=True) if unit.kind == "attention"}
    assert seen == set(range(2, 10))


@pytest.mark.parametrize("name", ["random", "evolution", "eas", "evopress", "cma-es"])
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
    with pytest.raises(ValueError, match=r"random needs a budget .* got 0: give --evaluations 1 or more"):
        meter.require_evaluation("random")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Meter(CURVES, -1)


def test_a_search_says_how_many_of_its_measurements_were_candidates():
    meter, kept = Meter(CURVES, 4), uniform(0.3, CURVES.units).kept
    meter.measure(kept, 3)
    before = meter.candidates
    for _ in range(2):  # the start, and a candidate
        meter.compare(kept, 5)
    meter.recount(before, 1)
    assert (meter.candidates, meter.spent) == (2, 13)


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
    problem = Problem.of(curves, 0.4)
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


def test_ppo_never_ends_behind_ffn_only_on_search_text():
    """A start from nothing and eight evaluations find little; the simple answer is a finalist."""
    for seed in range(3):
        problem = on_curves(40, seed=seed)
        found = ppo(problem, SearchSettings(init="none", search_windows=1))
        assert CURVES.measure(found.kept, 1) <= CURVES.measure(ffn_only(0.3, CURVES.units).kept, 1) * (1 + 1e-3)


@pytest.mark.parametrize("name", [*METHODS, "ppo-fisher-start"])
def test_nobody_sees_the_windows_of_the_finalists_before_they_are_ranked(name, on_model, monkeypatch):
    finalists, read = {tuple(x) for x in on_model.meter.evaluator.texts["finalists"].tolist()}, []
    measures = [(evaluator_module, name) for name in ("window_losses", "compare_with_dense", "final_hidden_states")]
    for module, function in (*measures, (damage_module, "back_propagate")):
        real = getattr(module, function)

        def record(model, windows, *arguments, real=real):
            read.extend(tuple(x) in finalists for x in windows.tolist())
            return real(model, windows, *arguments)

        monkeypatch.setattr(module, function, record)
    ALL[name].answer(on_model)
    assert sorted(read) == read  # first what they may see, then the finalists' alone
    assert any(read) == name.startswith(("ppo", "policy"))
    assert read or not (ALL[name].searches or name.startswith("fisher"))  # what reads was seen to read


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
    measures = [(evaluator_module, name) for name in ("window_losses", "compare_with_dense")]
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
    never_twice = ("random", "eas", "ppo-from-nothing")  # what they draw
    assert (on_model.meter.spent > on_model.meter.seen) == (name not in never_twice)


@pytest.mark.parametrize("name", METHODS)
def test_units_may_go_entirely_where_the_bounds_let_them(name, on_model):
    problem = replace(on_model, a_min=0.0, sparsity=0.5)
    allocation = METHODS[name].answer(problem)
    removed = problem.prunable.sparsity(allocation.kept)
    assert removed >= 0.5
    assert removed == pytest.approx(allocation.sparsity)
    if name in ("depth", "fisher"):
        assert 0 in allocation.kept
    with problem.prunable.pruned(allocation.kept) as model, torch.no_grad():
        assert torch.isfinite(model(problem.windows[:1]).logits).all()
