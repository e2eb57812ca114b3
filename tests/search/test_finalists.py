"""The last look: on windows that nobody saw, luck does not count."""

from __future__ import annotations

import numpy as np
import pytest

from ffprune_env.budget.mapping import allocate
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.search import run_search as run_search_module
from ffprune_env.search.added import SAFETY_NET, START
from ffprune_env.search.affordable import affordable, most_windows, rounds
from ffprune_env.search.finalists import (
    candidates,
    choose,
    choose_everywhere,
    functions_of,
)
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import last_look, run_search
from ffprune_env.search.samples import Archive, Sample
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.equal import Equal
from ffprune_env.search.starts.known import FfnOnly
from ffprune_env.search.starts.start import StartScores

CURVES = SurrogateEvaluator.synthetic(n_layers=6, seed=3)


@pytest.mark.parametrize("windows", [90, 200, 1000])
def test_ppo_runs_as_many_rollouts_as_the_windows_last(windows):
    settings = SearchSettings(search_windows=4, rollout=8)
    affording = affordable(settings, windows)
    assert most_windows(affording) <= windows
    assert affording.evaluations % settings.rollout == 0
    # A rollout more always fits in eight evaluations more.
    longer = affordable(settings, most_windows(affording) + 8 * 4)
    assert longer.evaluations > affording.evaluations
    finals = 8 * 4 + sum(rivals * n for rivals, n in rounds(settings, 8))
    assert affording.evaluations > (windows - finals) / 4 - 9  # the curriculum buys evaluations


def test_finalists_are_halved_while_their_text_doubles():
    settings = SearchSettings(search_windows=4, final_windows=16)
    assert rounds(settings, 8) == [(8, 8), (4, 16)]
    assert rounds(settings, 1) == [(1, 8)]
    assert rounds(SearchSettings(search_windows=4, final_windows=4), 8) == [(8, 4)]


@pytest.mark.parametrize(("sparsity", "within"), [(0.3, True), (0.65, False)])
def test_what_the_bounds_do_not_allow_is_not_called_ffn_only(sparsity, within, caplog):
    """Rates that would be clipped are those of another model than the baseline of that name."""
    settings = SearchSettings(sparsity=sparsity, a_min=0.15, init="ffn-only")
    start = np.zeros(len(CURVES.units))
    rivals = candidates(settings, CURVES.units, start, start, Archive(sparsity))
    assert (SAFETY_NET in rivals) == within
    assert (SAFETY_NET in functions_of(settings, CURVES.units, {sparsity: start}, {sparsity: start})) == within
    problem = Problem.of(CURVES, sparsity, a_min=0.15)
    scores = FfnOnly().scores(problem, (sparsity,))
    assert ("from what is nearest within the bounds, 0.15 to 1" in caplog.text) != within
    if within:
        np.testing.assert_array_equal(scores.targets[sparsity], rivals[SAFETY_NET])


def test_luck_on_the_windows_of_the_search_does_not_count():
    """A sample of a reward that nothing comes near is only as good as it is on the windows for finalists."""
    settings = SearchSettings(sparsity=0.3, search_windows=2, final_windows=8, init="ffn-only")
    start, lucky = np.zeros(len(CURVES.units)), np.linspace(-1, 1, len(CURVES.units))
    kept, uniform_kept = (allocate(x, 0.3, CURVES.units).kept for x in (lucky, start))
    known, asked = {kept.tobytes(): 3.1, uniform_kept.tobytes(): 3.0}, []

    def losses(some, n):
        asked.append(n)
        return np.full(n, known.get(some.tobytes(), 4.0))

    archive = Archive(0.3)
    archive(Sample(0, 0.3, 2, lucky, kept, kept / 1.0, 0.3, 2.7, 2.0, 0.9, False, 0.1))
    rivals = candidates(settings, CURVES.units, start, start, archive)
    chosen = choose(settings, CURVES.units, rivals, losses)
    assert chosen.name == "the start"  # and not the policy's mean, which is the same and comes second
    np.testing.assert_array_equal(chosen.allocation.kept, uniform_kept)
    assert asked == [4, 4, 4, 8, 8]  # the start, which is the policy's mean, ffn-only, the sample; then the best two


@pytest.mark.parametrize("sparsity", [0.3, (0.2, 0.3, 0.4)])
@pytest.mark.parametrize("better", [START, "the policy's mean"])
def test_what_is_left_for_other_sparsities_is_what_was_chosen(sparsity, better, monkeypatch):
    """What made it worse does not answer other sparsities, nor is it what the next search starts from."""
    settings, units = SearchSettings(sparsity=sparsity, init="none"), CURVES.units
    rng = np.random.default_rng(0)
    known = {START: rng.normal(size=len(units)), "the policy's mean": rng.normal(size=len(units))}
    functions = {name: dict.fromkeys((*settings.targets, 0.35), x) for name, x in known.items()}
    scores = StartScores(dict.fromkeys(settings.targets, known[START]), {0.35: known[START]})
    best = {allocate(known[better], at, units).kept.tobytes() for at in settings.targets}
    evaluator = SurrogateEvaluator.synthetic(n_layers=6, seed=3)
    monkeypatch.setattr(evaluator, "final_losses", lambda kept, n: np.full(n, 2.0 if kept.tobytes() in best else 3.0))
    answers, table = last_look(
        settings, evaluator, Equal(), scores, functions["the policy's mean"], Archive(0.3), simple=False
    )
    assert {answer.name for answer in answers.values()} == {better}
    assert table == functions[better]


def test_a_sample_that_was_chosen_is_what_is_left_at_its_own_sparsity():
    """And around it the policy's mean."""
    settings, units = SearchSettings(sparsity=0.3, init="none"), CURVES.units
    rng = np.random.default_rng(0)
    start, mean, lucky = (rng.normal(size=len(units)) for _ in range(3))
    kept = allocate(lucky, 0.3, units).kept
    archive = Archive(0.3)
    archive(Sample(0, 0.3, 2, lucky, kept, kept / 1.0, 0.3, 2.7, 2.0, 0.9, False, 0.1))
    evaluator = SurrogateEvaluator.synthetic(n_layers=6, seed=3)
    evaluator.final_losses = lambda some, n: np.full(n, 2.0 if (some == kept).all() else 3.0)
    scores = StartScores({0.3: start}, {0.4: start})
    answers, table = last_look(settings, evaluator, Equal(), scores, {0.3: mean, 0.4: mean}, archive, simple=False)
    assert answers[0.3].name == "archived sample 1"
    np.testing.assert_array_equal(table[0.3], lucky)
    np.testing.assert_array_equal(table[0.4], mean)


def test_finalists_of_a_rising_sparsity_are_not_all_of_the_lightest_rollout(monkeypatch):
    """Within 1 % of the final sparsity what samples differ by is more than what the sparsity makes."""
    settings = SearchSettings(
        sparsity=0.4, init="none", evaluations=480, finalists=4, ramp_sparsity=True, ramp_windows=False,
        fresh_windows=False, learning_rate=1e-9, log_std_init=0.0,
    )  # fmt: skip
    settings.require_allowed()
    archives = []
    monkeypatch.setattr(
        run_search_module, "candidates", lambda *a: archives.append(a[-2]) or candidates(*a[:-1], simple=False)
    )
    start = Equal()
    outcome = run_search(settings, CURVES, start, start.scores(Problem.of(CURVES, 0.4), settings.targets))
    compared = [sample for sample in outcome.samples if sample.target_sparsity >= 0.99 * 0.4]
    assert 480 / 12 < len(compared) < 480 / 7
    best = archives[0].best()
    assert [x.step for x in best] == [x.step for x in sorted(compared, key=lambda x: x.reward, reverse=True)[:4]]
    assert len({sample.step // 8 for sample in best}) > 1


@pytest.mark.parametrize("everywhere", [False, True])
def test_what_a_search_from_ffn_only_found_is_not_given_up_for_one_hard_window(everywhere):
    sparsities = (0.2, 0.3)
    settings = SearchSettings(sparsity=sparsities if everywhere else 0.3, init="ffn-only", final_windows=8)
    starts = FfnOnly().scores(Problem.of(CURVES, 0.3), sparsities).targets
    functions = functions_of(settings, CURVES.units, starts, {at: x[::-1].copy() for at, x in starts.items()})
    simple = {allocate(x, at, CURVES.units, mapping=settings.mapping).kept.tobytes() for at, x in starts.items()}

    def measure(kept, n_samples):
        if kept.tobytes() in simple:
            return np.full(n_samples, 3.0)
        return np.array([2.999] * (n_samples - 1) + [3.1])  # one decides the mean, by less than its standard error

    if everywhere:
        found = choose_everywhere(settings, CURVES.units, functions, measure)[0.3]
    else:
        found = choose(settings, CURVES.units, {name: x[0.3] for name, x in functions.items()}, measure)
    assert found.name == "the policy's mean"
    assert found.added.nats < 0


@pytest.mark.parametrize("alike", [True, False])
def test_functions_that_keep_the_same_everywhere_are_one(alike, caplog):
    """The first name stays; what keeps the same at one sparsity and not at the other is measured."""
    caplog.set_level("INFO")
    settings = SearchSettings(sparsity=(0.2, 0.3), search_windows=2, final_windows=8)
    start, other = np.linspace(-1, 1, len(CURVES.units)), np.linspace(1, -1, len(CURVES.units))
    mean = {0.2: start + 1e-9, 0.3: start if alike else other}
    functions = {START: dict.fromkeys((0.2, 0.3), start), "the policy's mean": mean}
    asked = []

    def losses(kept, n):
        asked.append(n)
        return np.full(n, 3.0)

    answer = choose_everywhere(settings, CURVES.units, functions, losses)[0.3]
    assert (answer.name, answer.added.chosen, answer.added.nats) == (START, START, 0)
    assert answer.added.next_best == (None if alike else "the policy's mean")
    assert asked == [4] * (2 if alike else 4)
    assert answer.spent == (4 if alike else 8)
    assert ("measuring the start at 2" in caplog.text) == alike


@pytest.mark.parametrize("targets", [(0.3,), (0.2, 0.3)])
def test_the_last_look_asks_the_safety_net_for_more_than_chance(targets):
    """At one sparsity and over several."""
    settings = SearchSettings(sparsity=targets, search_windows=2, final_windows=4 * len(targets))
    start = np.linspace(-1, 1, len(CURVES.units))
    known = {at: allocate(start, at, CURVES.units).kept.tobytes() for at in targets}

    def losses(kept, n):
        assert n == 4
        return np.array([3.0, 3.0, 3.0, 3.1]) if kept.tobytes() in known.values() else np.full(n, 3.01)

    functions = {"the start": dict.fromkeys(targets, start), "ffn-only": {at: np.zeros(len(start)) for at in targets}}
    if len(targets) == 1:
        at_target = {name: scores[0.3] for name, scores in functions.items()}
        answer = choose(settings, CURVES.units, at_target, losses)
    else:
        answer = choose_everywhere(settings, CURVES.units, functions, losses)[0.3]
    assert answer.name == answer.added.chosen == "the start"
    assert (answer.added.next_best, round(answer.added.next_nats, 9)) == ("ffn-only", -0.015)
    told = answer.added.told("fisher", 9, 1)
    assert "ffn-only comes next, -0.0150 nats per token, no more than chance, on 4 windows" in told
