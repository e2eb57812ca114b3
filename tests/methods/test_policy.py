"""`policy`: one search answers all sparsities within one budget; and searches start where a problem says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.methods.ablations import ABLATIONS
from ffprune_env.methods.policy import answer_all, policy
from ffprune_env.methods.ppo import ppo
from ffprune_env.methods.registry import METHODS, settings_of
from ffprune_env.search.affordable import affordable
from ffprune_env.search.meter import Meter
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import run_search
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.parse import parse_start

CURVES = SurrogateEvaluator.synthetic(n_layers=6, seed=3)
TARGETS = (0.1, 0.2, 0.3)


def of_all(evaluations: int, sparsity: float = 0.2, **asked) -> Problem:
    return Problem.of(CURVES, sparsity, evaluations=evaluations, seed=1, targets=TARGETS, **asked)


def test_its_answers_are_those_of_a_search_with_the_same_settings():
    problem = of_all(90, init="none")
    found = answer_all(problem)
    told = SearchSettings(
        sparsity=TARGETS,
        search_windows=CURVES.max_samples,
        final_windows=CURVES.max_final_samples,
        seed=1,
        init="none",
        fresh_windows=False,  # curves have none
    )
    told = affordable(told, 90 * CURVES.max_samples)
    start = parse_start(told)
    outcome = run_search(told, CURVES, start, start.scores(problem, TARGETS), simple=False)
    assert tuple(found) == TARGETS
    for target, one in found.items():
        assert one.allocation.kept.tolist() == outcome.answers[target].allocation.kept.tolist()
        assert one.allocation.sparsity >= target
    assert 4 < len(outcome.samples) == told.evaluations
    assert {sample.target_sparsity for sample in outcome.samples} == set(TARGETS)


@pytest.mark.parametrize("evaluations", [6, 12, 21, 90])
def test_one_budget_covers_the_search_and_the_finalists_of_every_target(evaluations, monkeypatch):
    final, final_losses = [], Meter.final_losses

    def count(self, kept, n_samples):
        final.append(n_samples)
        return final_losses(self, kept, n_samples)

    monkeypatch.setattr(Meter, "final_losses", count)
    problem = of_all(evaluations, init="none")
    found = answer_all(problem)
    # Finalists that keep the same are measured once, and `ffn-only` is not: some is left.
    assert 0.5 * problem.meter.budget <= problem.meter.spent <= problem.meter.budget
    assert len(final) >= 2 * len(TARGETS)  # two candidates at the least, at every target
    for one in found.values():
        spent = [at for at, _ in one.trace]
        assert spent == sorted(spent)
        assert spent[-1] == problem.meter.spent
        assert one.trace[-1][1].tolist() == one.allocation.kept.tolist()


def test_a_budget_that_finalists_of_one_target_would_fit_does_not_do_for_several():
    assert policy(Problem.of(CURVES, 0.2, evaluations=2)) is not None
    with pytest.raises(ValueError, match=r"ppo needs a budget of at least 17 windows, got 16"):
        answer_all(of_all(2))


def test_with_one_sparsity_it_is_ppo_and_otherwise_not():
    alone, same = (Problem.of(CURVES, 0.2, evaluations=40, seed=1, init="none") for _ in range(2))
    assert policy(alone).kept.tolist() == ppo(same).kept.tolist()
    assert [kept.tolist() for _, kept in alone.meter.trace] == [kept.tolist() for _, kept in same.meter.trace]
    several = of_all(40, init="none")
    assert policy(several).kept.tolist() == answer_all(of_all(40, init="none"))[0.2].allocation.kept.tolist()
    ends = [[(at, kept.tolist()) for at, kept in of.meter.trace] for of in (several, same)]
    assert ends[0] != ends[1]


def test_its_settings_say_which_sparsities_it_answers():
    assert settings_of(METHODS["policy"], TARGETS)["targets"] == list(TARGETS)
    assert all("targets" not in settings_of(METHODS[name], TARGETS) for name in METHODS if name != "policy")


@pytest.mark.parametrize(("init", "simple"), [("none", uniform), ("ffn-only", ffn_only)])
@pytest.mark.parametrize("name", ["random", "evolution", "eas", "evopress", "cma-es"])
def test_a_search_first_measures_the_start_that_a_problem_names(name, init, simple, monkeypatch):
    measured = []
    for function in ("measure", "compare"):
        real = getattr(Meter, function)

        def record(self, kept, n_samples, real=real):
            measured.append(kept.tolist())
            return real(self, kept, n_samples)

        monkeypatch.setattr(Meter, function, record)
    METHODS[name].answer(Problem.of(CURVES, 0.3, evaluations=20, init=init))
    expected = simple(0.3, CURVES.units)
    heads = np.array([unit.kind == "attention" for unit in CURVES.units])
    first = np.array(measured[0])
    assert (first == expected.kept)[heads].all()
    assert np.abs(first - expected.kept).max() <= 1  # an FFN takes what is left of the budget


@pytest.mark.parametrize("name", ["ppo", "policy"])
@pytest.mark.parametrize("init", ["none", "ffn-only"])
def test_the_policy_starts_where_a_problem_says(name, init):
    """As if its settings said so; and where they do, as in the ablations, they are followed instead."""
    method = {"ppo": ppo, "policy": policy}[name]
    named, told, otherwise = (
        Problem.of(CURVES, 0.3, evaluations=30, init=asked)
        for asked in (init, "own", "none" if init == "ffn-only" else "ffn-only")
    )
    method(named)
    method(told, SearchSettings(init=init))
    ABLATIONS["ppo-from-nothing" if init == "none" else "ppo-ffn-only-start"].answer(otherwise)
    first, again, ablated = ([kept.tolist() for _, kept in x.meter.trace] for x in (named, told, otherwise))
    assert first[:-1] == again[:-1] == ablated[:-1]
    assert again == ablated  # `ffn-only` is among their last candidates, wherever they began
    assert init == "none" or first == again
    attention = np.array([unit.kind == "attention" for unit in CURVES.units])
    n = np.array([unit.n_groups for unit in CURVES.units])
    whole = np.array(first[0])[attention].sum() / n[attention].sum()
    assert whole > 0.85 if init == "ffn-only" else 0.6 < whole < 0.8


class Judge(SurrogateEvaluator):
    """Measures exp of minus what a function says, which is 30 lower for every pruned model than for the dense one."""

    def compare(self, kept, n_samples):
        damage = self.damage(kept)
        return math.exp(30 + damage), damage

    def dense(self, n_samples):
        return 1.0


def test_a_search_is_rewarded_by_what_its_problem_rewards(monkeypatch):
    """The size of what a function says does not matter, and no windows are drawn for it."""
    judge = Judge(CURVES.units, CURVES.curves, pool=8)
    problem = dataclasses.replace(Problem.of(judge, 0.3, evaluations=24), reward="module:function")
    samples = []

    def listen(*args, **kwargs):
        outcome = run_search(*args, **kwargs)
        samples.extend(outcome.samples)
        return outcome

    monkeypatch.setattr("ffprune_env.methods.ppo.run_search", listen)
    ppo(problem)
    assert len({sample.reward for sample in samples}) > 2
    assert max(sample.reward for sample in samples) < -30
    assert {sample.windows for sample in samples} == {None}


@pytest.mark.parametrize("method", [ppo, policy])
def test_who_begins_from_nothing_is_not_given_ffn_only_in_the_end(method, monkeypatch):
    """Their last candidates are what was found; of who begins there by its own settings it is one."""
    simple, final, final_losses = ffn_only(0.3, CURVES.units).kept, [], Meter.final_losses

    def record(self, kept, n_samples):
        final.append(int(np.abs(kept - simple).max()))
        return final_losses(self, kept, n_samples)

    monkeypatch.setattr(Meter, "final_losses", record)
    method(Problem.of(CURVES, 0.3, evaluations=12, init="none"))
    assert min(final) > 1
    final.clear()
    method(Problem.of(CURVES, 0.3, evaluations=12), SearchSettings(init="none"))
    assert min(final) <= 1
