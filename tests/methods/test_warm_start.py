"""A search that starts from what another one found at a lower sparsity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_model
from tiny_subject import subject_of

from ffprune_env.comparison.contest import search_and_measure
from ffprune_env.comparison.policies import KeptPolicies
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.methods.registry import METHODS, settings_of
from ffprune_env.methods.warm_start import SHARE, WARM_STARTED, warm_name
from ffprune_env.search.mean import mean_actions, mean_scores
from ffprune_env.search.policy import make_env, make_policy
from ffprune_env.search.presets import search_settings
from ffprune_env.search.problem import Problem

CURVES = SurrogateEvaluator.synthetic(n_layers=6, seed=3)


def test_the_paper_s_network_starts_at_the_scores_that_it_is_given():
    settings = replace(search_settings("paper"), sparsity=0.3, evaluations=16)
    scores = np.linspace(-3, 3, len(CURVES.units))
    actions = mean_actions({0.3: scores}, settings.action_scale, settings.action_bound)
    policy = make_policy(settings, make_env(settings, CURVES), actions)
    assert mean_scores(policy, 0.3, settings.action_scale) == pytest.approx(scores, abs=0.05)


def test_a_short_search_from_another_one_finds_more_than_one_from_nothing():
    def found(evaluations, sparsity, seed, init="own"):
        problem = Problem.of(CURVES, sparsity, evaluations=evaluations, seed=seed, init=init)
        kept = METHODS["ppo-paper"].answer(problem).kept
        assert problem.meter.spent <= problem.meter.budget
        return CURVES.measure(kept, CURVES.max_samples), problem.learned[-1]

    for seed in range(2):
        _, learned = found(400, 0.2, seed)
        assert learned.targets == (0.2,)
        assert found(60, 0.3, seed, learned)[0] < found(60, 0.3, seed)[0]


def test_the_curriculum_goes_on_where_that_of_the_other_search_ended(monkeypatch):
    """What is lighter was learnt there: measured again, it would take half of a short budget."""
    first = Problem.of(CURVES, 0.2, evaluations=100)
    METHODS["ppo-paper"].answer(first)
    (learned,) = first.learned
    weights = np.array([unit.n_params for unit in CURVES.units])
    groups = np.array([unit.n_groups for unit in CURVES.units])

    def lightest(init):
        removed, evaluator = [], SurrogateEvaluator.synthetic(n_layers=6, seed=3)
        measure = evaluator.measure

        def noting(kept, n_samples):
            removed.append(1 - (kept / groups) @ weights / weights.sum())
            return measure(kept, n_samples)

        monkeypatch.setattr(evaluator, "measure", noting)
        METHODS["ppo-paper"].answer(Problem.of(evaluator, 0.3, evaluations=100, init=init))
        return min(removed)

    assert lightest(learned) >= 0.2
    assert lightest("own") < 0.16


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_the_paper_s_search_has_room_to_choose_wherever_it_starts(sparsity):
    """At 30 % the lowest rate of the search at 20 %, 0.7, is what is kept in the mean: it would be all there is."""
    first = Problem.of(CURVES, 0.2, evaluations=40)
    METHODS["ppo-paper"].answer(first)
    (learned,) = first.learned
    started, alone = (Problem.of(CURVES, sparsity, evaluations=40, init=init) for init in (learned, "own"))
    for problem in (started, alone):
        rates = METHODS["ppo-paper"].answer(problem).rates
        assert rates.max() - rates.min() > 0.08
    assert started.learned[0].meaning == alone.learned[0].meaning
    assert started.learned[0].meaning["a_min"] == pytest.approx(max(0, 0.9 - sparsity))


def test_a_comparison_keeps_what_searches_learn_and_starts_others_from_it(windows, tmp_path):
    subject = replace(subject_of(tiny_model("llama-gqa"), windows), policies=KeptPolicies(tmp_path / "policies"))
    warm = WARM_STARTED[warm_name("ppo-paper")]
    with pytest.raises(ValueError, match=r"to start from: first measure ppo-paper at σ = 0\.2, seed 1"):
        search_and_measure(subject, warm_name("ppo-paper"), warm, 0.3, 1, 200)
    first = search_and_measure(subject, "ppo-paper", METHODS["ppo-paper"], 0.2, 1, 200)
    assert KeptPolicies(tmp_path / "policies").find("ppo-paper", 0.2, 1).targets == (0.2,)
    second = search_and_measure(subject, warm_name("ppo-paper"), warm, 0.3, 1, 200)
    assert second.sparsity >= 0.3
    assert second.evaluations <= SHARE * 200 < first.evaluations
    assert second.settings == settings_of(warm)
    assert second.settings["warm"] == {"method": "ppo-paper", "sparsity": 0.2, "share": SHARE}
    assert "warm" not in first.settings  # so that cells of before are still cells
    with pytest.raises(ValueError, match="nothing is kept of what ppo-paper has learnt"):
        search_and_measure(replace(subject, policies=None), warm_name("ppo-paper"), warm, 0.3, 1, 200)
