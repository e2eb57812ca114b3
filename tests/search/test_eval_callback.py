"""The mean of the policy on windows of its own: a curve in TensorBoard, that a search without one does not pay for."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_fresh_windows import searched, windowed

from ffprune_env.budget.sparsity_range import SparsityRange
from ffprune_env.search.affordable import most_windows
from ffprune_env.search.eval_callback import rollouts_between_looks
from ffprune_env.search.mean import mean_allocation
from ffprune_env.search.settings import SearchSettings


def looked(tmp_path, evaluator, **changes):
    logger = configure(str(tmp_path), ["tensorboard"])
    settings, _, outcome = searched(evaluator, logger=logger, **changes)
    logger.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = {tag: [(x.step, x.value) for x in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return settings, outcome, {tag: points for tag, points in shown.items() if tag.startswith("eval")}


def test_the_mean_is_measured_on_the_same_windows_at_the_final_sparsity(tmp_path):
    evaluator = windowed(pool=0, watch=4)
    ramp = {"fresh_windows": False, "ramp_sparsity": True, "alpha_start": 0.3}
    settings, outcome, shown = looked(tmp_path, evaluator, eval_every=3, **ramp)
    assert set(shown) == {"eval/reward", "eval/ppl", "eval/dense_ppl"}
    assert [step for step, _ in shown["eval/reward"]] == [0, 12, 24, 32]
    assert min(sample.target_sparsity for sample in outcome.samples) < 0.2
    kept = [mean_allocation(settings, evaluator.units, outcome.policy).kept, searched_start(settings, evaluator)]
    for (_, ppl), allocation in zip((shown["eval/ppl"][-1], shown["eval/ppl"][0]), kept, strict=True):
        assert ppl == pytest.approx(evaluator.measure(allocation, evaluator.watch))
    assert not {i for sample in outcome.samples for i in sample.windows or ()} & set(evaluator.watch)


def searched_start(settings, evaluator):
    """What the policy's mean keeps before the first update."""
    import ffprune_env as ff

    return ff.ffn_only(settings.target, evaluator.units).kept


def test_looking_changes_nothing_of_a_search_and_is_counted(tmp_path):
    plain, seeing = windowed(watch=4), windowed(watch=4)
    _, _, without = searched(plain, eval_every=0)
    _, outcome, shown = looked(tmp_path, seeing, eval_every=2)
    for one, other in zip(without.samples, outcome.samples, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(without.answers[0.3].scores, outcome.answers[0.3].scores)
    asked = {kept for kept, on in seeing.asked if on == seeing.watch}
    dense = 4
    assert outcome.windows - without.windows == 4 * len(asked) + dense
    assert len(asked) > 1
    assert [step for step, _ in shown["eval/ppl"]] == [0, 8, 16, 24, 32]


@pytest.mark.parametrize("changes", [{"eval_every": 0}, {"eval_every": 1, "logger": None}, {"evaluations": 0}])
def test_who_has_no_use_for_it_does_not_look(changes):
    """A budget that searches are compared by pays for none of it."""
    evaluator = windowed(watch=4)
    settings, _, outcome = searched(evaluator, **changes)
    assert not [on for _, on in evaluator.asked if on == evaluator.watch]
    assert outcome.windows <= most_windows(settings)


def test_several_sparsities_have_a_curve_each_and_patience_looks_at_the_same(tmp_path):
    evaluator = windowed(watch=4)
    changes = {"sparsity": (0.2, 0.3), "evaluations": 48, "patience": 2, "watch_windows": 4}
    _, outcome, shown = looked(tmp_path, evaluator, eval_every=1, **changes)
    assert {"eval_s20/reward", "eval_s30/reward"} <= shown.keys()
    watched = [kept for kept, on in evaluator.asked if on == evaluator.watch]
    assert len(watched) <= 2 * len(set(watched))
    final = mean_allocation(SearchSettings(sparsity=0.3), evaluator.units, outcome.policy).kept
    assert shown["eval_s30/ppl"][-1][1] == pytest.approx(evaluator.measure(final, evaluator.watch))


def test_with_a_divergence_as_reward_that_is_shown(tmp_path):
    _, _, shown = looked(tmp_path, windowed(watch=2), reward="kl", eval_every=4)
    for (_, reward), (_, kl) in zip(shown["eval/reward"], shown["eval/kl"], strict=True):
        assert reward == pytest.approx(np.exp(-kl))


@pytest.mark.parametrize(
    ("changes", "every"),
    [
        ({}, 5),
        ({"eval_every": 3}, 3),
        ({"rollout": 64, "evaluations": 1024, "search_windows": 8}, 1),
        ({"sparsity": SparsityRange(0.1, 0.5), "search_windows": 1}, 50),
    ],
)
def test_looks_cost_a_twentieth_of_the_candidates(changes, every):
    settings = SearchSettings(**{"eval_every": None, "init": "ffn-only"} | changes)
    assert rollouts_between_looks(settings) == every
    if settings.eval_every is None:
        look = len(settings.targets) * settings.watch_windows
        assert look / (every * settings.per_update * settings.search_windows) <= 1 / 20
