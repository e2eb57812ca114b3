"""A search starts where it is told, from knowledge that one look at the model gives."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_model

from ffprune_env.budget.even import ffn_only
from ffprune_env.budget.mapping import allocate
from ffprune_env.budget.sparsity_range import SparsityRange
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.methods.registry import METHODS
from ffprune_env.pruning import damage as damage_module
from ffprune_env.pruning.backward import back_propagate
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.search.mean import mean_actions, mean_scores
from ffprune_env.search.meter import Meter
from ffprune_env.search.policy import make_env, make_policy
from ffprune_env.search.presets import search_settings
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import learned
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts import other_run
from ffprune_env.search.starts.fisher_iterated import FisherIterated, iterate, step_windows
from ffprune_env.search.starts.known import FfnOnly
from ffprune_env.search.starts.names import NAMES
from ffprune_env.search.starts.parse import parse_start
from ffprune_env.search.starts.start import cheap_enough
from ffprune_env.search.unheeded import require_heeded

CURVES = SurrogateEvaluator.synthetic(n_layers=6, seed=3)


@pytest.fixture
def on_model(windows: torch.Tensor) -> Problem:
    prunable = PrunableModel(tiny_model("llama-gqa"))
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    evaluator = LMEvaluator(prunable, windows, texts={"finalists": windows.flip(1)})
    return Problem(prunable, stats, Meter(evaluator, 40), 0.3, 0, windows=windows)


def scores_for(settings, problem):
    return parse_start(settings).scores(problem, settings.targets)


def policy_from(settings, problem, scores):
    actions = mean_actions(scores.everywhere, settings.action_scale)
    return make_policy(settings, make_env(settings, problem.meter), actions)


def test_every_name_is_a_start_and_nothing_else_is(tmp_path):
    assert [parse_start(SearchSettings(init=name)).name for name in NAMES] == list(NAMES)
    with pytest.raises(ValueError, match="--init must be none, ffn-only, fisher, fisher-iterated or the folder of a"):
        parse_start(SearchSettings(init="fishr"))
    with pytest.raises(ValueError, match="no policy can be read from"):
        parse_start(SearchSettings(init=str(tmp_path)))


def test_greedy_starts_equal_and_says_so_before_anything_else(caplog):
    """A default is said to be of no use; the same asked for is refused."""
    for mapping in ("greedy", "paper"):
        assert [parse_start(SearchSettings(mapping=mapping, init=name)).name for name in NAMES] == ["none"] * 4
    assert not caplog.records
    require_heeded(SearchSettings(mapping="greedy"), {"mapping"})
    (line,) = caplog.messages
    assert line == (
        "--mapping greedy keeps the order of scores alone: the search starts from equal scores, and nobody looks at "
        "--init, --init-steps, --curve-windows"
    )
    for name in ("ffn-only", "fisher", "fisher-iterated"):
        with pytest.raises(ValueError, match=f"--mapping greedy .* cannot say --init {name}: leave that out, say"):
            require_heeded(SearchSettings(mapping="greedy", init=name), {"mapping", "init"})
    with pytest.raises(ValueError, match="which no step improves: leave out --init-steps"):
        require_heeded(SearchSettings(mapping="greedy", init_steps=3), {"init_steps"})
    require_heeded(SearchSettings(mapping="greedy", init="none"), {"init"})
    require_heeded(SearchSettings(mapping="greedy", init_steps=2), ())  # as --quick has it


def test_who_heeds_everything_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    require_heeded(SearchSettings(init="fisher", init_steps=3), {"init", "init_steps"})
    assert not caplog.records
    require_heeded(search_settings("paper"), ())
    assert "--mapping paper keeps the order of scores alone: the search starts from equal scores, and n" in caplog.text
    assert "nobody looks at --init, --init-steps, --curve-windows, --pool-windows" in caplog.text


@pytest.mark.parametrize("init", NAMES)
def test_a_policy_starts_where_it_is_told(on_model, init):
    settings = SearchSettings(sparsity=0.3, search_windows=3, init=init)
    scores = scores_for(settings, on_model)
    start = scores.targets[0.3]
    mapped = allocate(start, 0.3, on_model.units, a_min=0.2)
    methods = {"none": "uniform", "ffn-only": "ffn-only", "fisher": "fisher", "fisher-iterated": "fisher-iterated"}
    asked = METHODS[methods.pop(init)].answer(on_model)
    # Of 4 heads or 24 channels; what whole ones leave over goes to one of equal units, which is drawn.
    assert np.abs(mapped.kept - asked.kept).max() <= 2
    policy = policy_from(settings, on_model, scores)
    np.testing.assert_allclose(mean_scores(policy, 0.3, 3.0), np.clip(start, -2.4, 2.4), atol=0.02)
    others = [METHODS[name].answer(on_model).kept for name in methods.values() if "fisher" not in name]
    assert all(np.abs(mapped.kept - other).max() > 1 for other in others)


@pytest.mark.parametrize("init", ["ffn-only", "fisher", "fisher-iterated"])
def test_a_policy_starts_with_knowledge_of_the_sparsities_around_its_target(on_model, init):
    settings = SearchSettings(sparsity=0.3, search_windows=3, init=init)
    scores = scores_for(settings, on_model)
    assert len(scores.known) > 2
    policy = policy_from(settings, on_model, scores)
    for at, wanted in scores.everywhere.items():
        np.testing.assert_allclose(mean_scores(policy, at, 3.0), np.clip(wanted, -2.4, 2.4), atol=1e-3)


@pytest.mark.parametrize(("target", "half_way"), [(0.2, False), (0.3, True)])
def test_the_steps_after_another_run_begin_where_that_leads(on_model, tmp_path, monkeypatch, target, half_way):
    """At a target that it was trained for; half-way from there to `fisher` at others, which it only guesses."""
    settings = SearchSettings(sparsity=0.2, search_windows=3, init="ffn-only")
    scores = scores_for(settings, replace(on_model, sparsity=0.2))
    (tmp_path / "checkpoints").mkdir()
    learned(settings, on_model.units, scores.everywhere).save(tmp_path / "checkpoints")
    begun = []
    monkeypatch.setattr(other_run, "iterate", lambda *a: begun.append(a[2]) or iterate(*a))
    asked = replace(on_model, sparsity=target)
    start = parse_start(replace(settings, sparsity=target, init=str(tmp_path)))
    start.scores(asked, (target,))
    expected = ffn_only(target, on_model.units).rates
    if half_way:
        expected = (expected + METHODS["fisher"].answer(asked).rates) / 2
    groups = np.array([unit.n_groups for unit in on_model.units])
    assert np.abs(begun[0].kept - groups * expected).max() <= 1.5  # of 4 heads or 24 channels
    assert start.cost(asked) == 3 * 4 * 3  # as many sets of curves as for `fisher` and three steps
    assert [x.steps for x in start.cheaper()] == [2, 1, 0]


@pytest.mark.parametrize(
    ("target", "bounds", "known"),
    [(0.7, {}, [0.35, 0.525]), (0.4, {"a_max": 0.75}, [0.3, 0.5, 0.6]), ((0.3, 0.7), {}, [0.5])],
)
def test_knots_around_a_target_are_those_that_the_bounds_allow(tmp_path, target, bounds, known):
    """At 1.5 times 0.7 nothing is left, and at 1.25 times as much more goes than the lowest rate allows."""
    settings = SearchSettings(sparsity=target, init="none", **bounds)
    (tmp_path / "checkpoints").mkdir()
    problem = Problem.of(CURVES, settings.target, **settings.bounds)
    scores = dict.fromkeys((0.1, 0.9), np.zeros(len(CURVES.units)))
    learned(settings, CURVES.units, scores).save(tmp_path / "checkpoints")
    found = scores_for(replace(settings, init=str(tmp_path)), problem)
    assert list(found.known) == pytest.approx(known)
    policy = learned(settings, CURVES.units, found.everywhere)
    for at in policy.knots:  # what a run prints as its range, and `allocate --max-loss` tries
        assert policy.allocate(float(at)).sparsity >= at
    assert set(scores_for(replace(settings, init="ffn-only"), problem).known) <= set(found.known)


def test_a_target_out_of_reach_costs_the_others_nothing(on_model):
    settings = SearchSettings(sparsity=(0.1, 0.7), init="ffn-only", a_min=0.05)
    found = scores_for(settings, replace(on_model, a_min=0.05)).targets
    assert not found[0.7].any()
    assert found[0.1].any()


def test_one_look_serves_several_targets(on_model, monkeypatch):
    looks = []
    monkeypatch.setattr(damage_module, "back_propagate", lambda *a: looks.append(back_propagate(*a)))
    settings = SearchSettings(sparsity=(0.1, 0.2, 0.3), init="fisher", a_min=0.2)
    found = scores_for(settings, on_model)
    assert (list(found.targets), list(found.known)) == ([0.1, 0.2, 0.3], pytest.approx([0.15, 0.25]))
    assert len(looks) == len(on_model.windows)
    for target, scores in found.targets.items():
        alone = METHODS["fisher"].answer(replace(on_model, sparsity=target))
        mapped = allocate(scores, target, on_model.units, a_min=0.2)
        assert np.abs(mapped.kept - alone.kept).max() <= 1


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


def test_a_start_that_the_budget_does_not_cover_gives_way(on_model):
    whole = FisherIterated()
    assert whole.cost(on_model) == 3 * 9 * 3  # nine sets of curves of all three windows, forward and backward
    assert cheap_enough(whole, 1000, on_model) == whole
    fewer = cheap_enough(whole, 30, on_model)
    assert (fewer.name, fewer.steps, fewer.cost(on_model)) == ("fisher-iterated", 2, 27)
    assert cheap_enough(whole, 10, on_model).name == "fisher"
    assert cheap_enough(whole, 0, on_model) == FfnOnly()


def test_what_a_run_left_answers_any_sparsity_between_its_knots(tmp_path):
    settings = SearchSettings(sparsity=SparsityRange(0.1, 0.5), init="ffn-only")
    units = CURVES.units
    scores = scores_for(settings, Problem.of(CURVES, 0.3))
    assert list(scores.everywhere) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.15, 0.25, 0.35, 0.45])
    (tmp_path / "checkpoints").mkdir()
    learned(settings, units, scores.everywhere).save(tmp_path / "checkpoints")
    policy = Policy.load(tmp_path)
    for at in (0.1, 0.17, 0.27, 0.5):
        answer = policy.allocate(at)
        asked = ffn_only(at, units)
        assert answer.sparsity == pytest.approx(asked.sparsity, abs=1e-3)
        assert np.abs(answer.rates - asked.rates).max() < 0.03
    with pytest.raises(ValueError, match=r"from 0\.1 to 0\.5, got 0\.6: search there$"):
        policy.allocate(0.6)


@pytest.mark.parametrize(
    ("mapping", "said"), [("paper", None), ("greedy", None), ("waterfill", "with a_min 0.5, not 0.3")]
)
def test_bounds_may_differ_from_those_of_another_run_where_scores_say_an_order(tmp_path, mapping, said):
    settings = SearchSettings(sparsity=0.2, mapping=mapping, a_min=0.5)
    scores = {0.2: np.linspace(-0.9, 2.0, len(CURVES.units))}
    (tmp_path / "checkpoints").mkdir()
    learned(settings, CURVES.units, scores).save(tmp_path / "checkpoints")
    asked = replace(settings, sparsity=0.5, a_min=0.3, init=str(tmp_path), init_steps=0)
    start, problem = parse_start(asked), Problem.of(CURVES, 0.5, a_min=0.3)
    if said is not None:
        with pytest.raises(ValueError, match=said):
            start.scores(problem, asked.targets)
        return
    found = start.scores(problem, asked.targets).targets[0.5]
    rates = allocate(found, 0.5, CURVES.units, a_min=0.3, mapping=mapping).rates
    assert (np.diff(rates[::2]) >= 0).all()  # the units of one kind in the order of their scores
    assert rates.min() < 0.35
    with pytest.raises(ValueError, match=f"with mapping '{mapping}', not 'waterfill'"):
        parse_start(replace(asked, mapping="waterfill")).scores(problem, asked.targets)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda facts: {name: x for name, x in facts.items() if name != "units"},
            "policies were networks, search again",
        ),
        (lambda facts: {**facts, "units": facts["units"][1:]}, "does not hold 11 scores at every knot"),
        (lambda facts: {**facts, "units": 3}, "no policy can be read from"),
    ],
)
def test_a_policy_that_is_damaged_is_refused_in_one_line(tmp_path, damage, said):
    settings = SearchSettings(sparsity=0.3, init="ffn-only")
    scores = scores_for(settings, Problem.of(CURVES, 0.3))
    (tmp_path / "checkpoints").mkdir()
    learned(settings, CURVES.units, scores.everywhere).save(tmp_path / "checkpoints")
    file = tmp_path / "checkpoints" / "policy.json"
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=said):
        Policy.load(tmp_path)
