"""What PPO added to its start: on windows that both were measured on, in one line."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from test_finalists import CURVES

from ffprune_env.budget.mapping import allocate
from ffprune_env.evaluators.objectives.reward import parse_reward
from ffprune_env.search.added import Added, compare
from ffprune_env.search.finalists import Answer, choose
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import run_search
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.parse import parse_start


def test_the_start_is_compared_on_windows_that_both_were_measured_on():
    """It is last on the first 4, and so is not measured on 8."""
    order = ["a sample", "ffn-only"]
    losses = {"the start": {4: 3.2}, "a sample": {4: 3.0, 8: 2.5}, "ffn-only": {4: 3.1, 8: 2.6}}
    added = compare(order, losses)
    assert (added.chosen, added.windows, added.next_best) == ("a sample", 4, "ffn-only")
    assert added.nats == pytest.approx(0.2)
    assert added.next_nats == pytest.approx(0.1)
    assert added.percent == pytest.approx(100 * (1 - math.exp(-0.2)))
    assert added.told("none", 96, 47.2) == (
        "PPO added to its start (none): a sample is better by 0.2000 nats per token (18.13 % of PPL) on 4 windows; "
        "it cost 96 windows in 47 s"
    )


def test_where_the_start_is_the_best_that_is_said():
    losses = {"the start": {4: 3.0, 8: 2.5}, "the policy's mean": {4: 3.1, 8: 2.503}}
    added = compare(["the start", "the policy's mean"], losses)
    assert (added.nats, added.percent) == (0.0, 0.0)
    assert added.told("fisher-iterated", 96, 47.2) == (
        "PPO added nothing to its start (fisher-iterated): the policy's mean comes next, +0.0030 nats per token on 8 "
        "windows; it cost 96 windows in 47 s"
    )
    assert "(fisher); it cost" in compare(["the start"], {"the start": {1: 3.0}}).told("fisher", 9, 1)


@pytest.mark.parametrize(
    ("reward", "unit"),
    [
        ("ppl", "0.2000 nats per token (18.13 % of PPL) on 4 windows"),
        ("kl", "0.2000 nats per token on 4 windows"),
        ("ppl=0.5", "0.2000 nats per token on 4 windows"),  # half of a loss is no perplexity
        ("tasks", "0.2000 of the rewarded loss on 4 windows"),
    ],
)
def test_percent_of_perplexity_is_said_where_that_is_rewarded(reward, unit):
    added, rewarded = Added("a sample", 0.2, 4), parse_reward(reward)
    assert f"is better by {unit}; it cost" in added.told("none", 96, 47.2, rewarded)
    named = {"chosen", "nats", "windows", "next_best", "next_nats"}
    assert added.written(rewarded).keys() == named | ({"percent"} if reward == "ppl" else set())


def test_a_search_says_what_it_added_in_the_unit_of_its_reward():
    settings = SearchSettings(sparsity=0.3, init="ffn-only", evaluations=8, fresh_windows=False, reward="kl")
    start = parse_start(settings)
    outcome = run_search(settings, CURVES, start, start.scores(Problem.of(CURVES, 0.3), settings.targets))
    better = Answer("a sample", *[None] * 2, added=Added("a sample", 0.2, 4))
    told = replace(outcome, answers={0.3: better}).told()
    assert "a sample is better by 0.2000 nats per token on 4 windows; it cost" in told


def test_a_start_that_leads_by_no_more_than_chance_is_not_called_worse():
    told = Added("the policy's mean", -0.01, 8, "the start", -0.01).told("ffn-only", 96, 47)
    assert "the start (ffn-only) leads by 0.0100 nats per token on 8 windows, no more than chance" in told
    assert "better" not in told


def test_a_lead_that_is_no_more_than_chance_is_said_whatever_was_chosen():
    told = Added("the policy's mean", 0.1, 8, "ffn-only", -0.01).told("fisher", 96, 47)
    assert "; ffn-only comes next, -0.0100 nats per token, no more than chance, on 8 windows; it cost" in told
    assert "comes next" not in Added("the policy's mean", 0.1, 8, "ffn-only", 0.01).told("fisher", 96, 47)


def test_what_needs_no_search_is_no_merit_of_ppo():
    told = Added("ffn-only", 0.1, 8).told("none", 96, 47)
    assert told.startswith("PPO added nothing: ffn-only is better than its start (none) by 0.1000 nats")


def test_collapsed_models_are_compared_without_a_nan():
    collapsed = {"the start": {4: math.inf}, "a sample": {4: math.inf}}
    assert compare(["the start", "a sample"], collapsed).next_nats == 0
    assert compare(["a sample", "the start"], {**collapsed, "a sample": {4: 3.0}}).nats == math.inf


def test_the_choice_says_by_how_much_and_what_it_cost():
    settings = SearchSettings(sparsity=0.3, search_windows=2, final_windows=8)
    n = len(CURVES.units)
    scores = {"the start": np.zeros(n), "first": np.linspace(-1, 1, n), "second": np.linspace(1, -1, n)}
    kept = {allocate(x, 0.3, CURVES.units).kept.tobytes(): name for name, x in scores.items()}
    losses = {"the start": 3.3, "first": 3.2, "second": 3.1}
    answer = choose(settings, CURVES.units, scores, lambda some, on: np.full(on, losses[kept[some.tobytes()]]))
    assert answer.name == answer.added.chosen == "second"
    assert answer.added.nats == pytest.approx(0.2)
    assert answer.added.windows == 4
    assert answer.spent == 3 * 4 + 2 * 8
