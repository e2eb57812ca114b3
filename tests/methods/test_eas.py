"""`eas`: the reference's operators and schedule, on rates that meet a budget."""

from __future__ import annotations

import numpy as np
import pytest

from ffprune_env.budget.allocation import group_bounds
from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.methods import eas as eas_module
from ffprune_env.methods.eas import FIRST, LATER, Chances, Sizes, draw_ratios, eas, mutate
from ffprune_env.methods.random_search import random_search
from ffprune_env.search.meter import Meter
from ffprune_env.search.problem import Problem

CURVES = SurrogateEvaluator.synthetic(n_layers=6, seed=3)
MANY = SurrogateEvaluator.synthetic(n_layers=1000).units
ATTENTION = np.array([unit.kind == "attention" for unit in MANY])


@pytest.fixture
def measured(monkeypatch) -> list[list[int]]:
    """What is kept by every allocation that a meter measures."""
    seen, real = [], Meter.measure

    def record(self, kept, n_samples):
        seen.append(kept.tolist())
        return real(self, kept, n_samples)

    monkeypatch.setattr(Meter, "measure", record)
    return seen


def test_the_printed_sizes_hold_from_the_printed_evaluations_on():
    assert Sizes.of(5000) == Sizes.of(20_000) == Sizes(population=100, parents=10, mutants=50, crossed=30)


@pytest.mark.parametrize("evaluations", [1, 2, 14, 40, 96, 256, 1024, 4096])
def test_population_and_generations_shrink_alike(evaluations):
    sizes = Sizes.of(evaluations)
    generations = evaluations / sizes.population
    assert generations / 50 == pytest.approx(sizes.population / 100, rel=1 / sizes.population)
    assert sizes.mutants + sizes.crossed <= sizes.population
    assert sizes.mutants == pytest.approx(sizes.population / 2, abs=1)
    assert sizes.crossed == pytest.approx(0.3 * sizes.population, abs=1)
    assert sizes.parents == pytest.approx(max(2, 0.1 * sizes.population), abs=1)
    assert sizes.parents >= 2


@pytest.mark.parametrize(
    ("sparsity", "attention", "ffn"),
    [(0.1, 0.9, 0.6), (0.2, 0.8, 0.4), (0.22, 0.8, 0.4), (0.3, 0.3, 0.2), (0.4, 0.6, 0.1), (0.6, 0.6, 0.1)],
)
def test_ratios_are_drawn_from_the_printed_ranges(sparsity, attention, ffn):
    drawn = draw_ratios(MANY, sparsity, np.random.default_rng(0))
    for of_kind, lowest, interval in ((drawn[ATTENTION], attention, 0.01), (drawn[~ATTENTION], ffn, 0.05)):
        assert set(np.rint((of_kind - lowest) / interval)) == set(range(round((1 - lowest) / interval) + 1))
        assert np.abs(of_kind - lowest - interval * np.rint((of_kind - lowest) / interval)).max() < 1e-12


def test_a_mask_that_mutates_has_most_in_common_with_the_last_one():
    rates = np.random.default_rng(0).uniform(0.2, 1.0, len(MANY))
    after = mutate(rates, MANY, 0.2, Chances(ratio=0, mask=1), np.random.default_rng(1))
    in_common = np.minimum(rates, after) / np.maximum(rates, after)
    assert in_common.min() == pytest.approx(0.8, abs=0.01)
    assert after.max() == 1.0
    assert 0.4 < (after < rates).mean() < 0.6


@pytest.mark.parametrize("chances", [FIRST, LATER])
def test_units_mutate_as_often_as_is_printed(chances):
    rates = np.full(len(MANY), 0.731)  # no ratio that is drawn
    after = mutate(rates, MANY, 0.2, chances, np.random.default_rng(0))
    steps = (after - np.where(ATTENTION, 0.8, 0.4)) / np.where(ATTENTION, 0.01, 0.05)
    anew = np.abs(steps - np.rint(steps)) < 1e-9
    assert anew.mean() == pytest.approx(chances.ratio, abs=0.03)
    assert (after != rates)[~anew].mean() == pytest.approx(chances.mask, abs=0.03)
    assert np.array_equal(mutate(rates, MANY, 0.2, Chances(0, 0), np.random.default_rng(0)), rates)


@pytest.mark.parametrize(("a_min", "a_max"), [(0.2, 1.0), (0.5, 0.9)])
@pytest.mark.parametrize("sparsity", [0.2, 0.3])
def test_all_that_is_measured_keeps_budget_and_bounds_and_differs(sparsity, a_min, a_max, measured):
    problem = Problem.of(CURVES, sparsity, evaluations=120, a_min=a_min, a_max=a_max)
    found = eas(problem)
    size = np.array([unit.group_params for unit in CURVES.units])
    total = sum(unit.n_params for unit in CURVES.units)
    low, high = group_bounds(CURVES.units, a_min, a_max)
    for kept in map(np.array, measured):
        assert sparsity <= 1 - kept @ size / total < sparsity + size.min() / total
        assert (low <= kept).all()
        assert (kept <= high).all()
    assert len(measured) == len(set(map(tuple, measured))) == 120
    assert problem.meter.spent == problem.meter.budget
    assert CURVES.damage(found.kept) == min(CURVES.damage(np.array(kept)) for kept in measured)


@pytest.mark.parametrize(("init", "simple"), [("own", uniform), ("none", uniform), ("ffn-only", ffn_only)])
def test_it_starts_from_equal_rates_unless_another_start_is_named(init, simple, measured):
    eas(Problem.of(CURVES, 0.3, evaluations=1, init=init))
    assert np.abs(np.array(measured[0]) - simple(0.3, CURVES.units).kept).max() <= 1  # what is left of the budget


def test_the_best_so_far_are_parents_and_a_generation_is_made_as_printed(measured, monkeypatch):
    asked = []  # (measurements before, rates of the parent, chances)
    real = eas_module.mutate

    def record(rates, units, sparsity, chances, rng):
        asked.append((len(measured), rates, chances))
        return real(rates, units, sparsity, chances, rng)

    monkeypatch.setattr(eas_module, "mutate", record)
    model = SurrogateEvaluator.synthetic(seed=3)  # of so many units that no two mutants are alike
    eas(Problem.of(model, 0.3, evaluations=128))
    sizes, n_groups = Sizes.of(128), np.array([unit.n_groups for unit in model.units])
    assert sizes == Sizes(population=16, parents=2, mutants=8, crossed=5)
    generations = sorted({before for before, _, _ in asked})
    assert generations == list(range(0, 128, 16))
    for before in generations:
        made = [(rates, chances) for at, rates, chances in asked if at == before]
        counts = [sum(chances is kind for _, chances in made) for kind in (FIRST, LATER)]
        assert counts == ([15, 0] if before == 0 else [3, 8])
        if before:
            ranked = sorted(model.damage(np.array(kept)) for kept in measured[:before])
            parents = {model.damage(np.rint(rates * n_groups).astype(int)) for rates, _ in made}
            assert parents <= set(ranked[: sizes.parents])


def test_where_there_is_one_answer_it_is_found_by_one_measurement(measured):
    assert eas(Problem.of(CURVES, 0.0, evaluations=50)).sparsity == 0
    assert len(measured) == 1


@pytest.mark.parametrize("seed", range(3))
def test_it_beats_random_search(seed):
    model = SurrogateEvaluator.synthetic(seed=seed)
    problems = (Problem.of(model, 0.3, evaluations=256, seed=seed) for _ in range(2))
    evolved, drawn = (method(problem).kept for method, problem in zip((eas, random_search), problems, strict=True))
    assert model.damage(evolved) < model.damage(drawn) < model.damage(uniform(0.3, model.units).kept)
