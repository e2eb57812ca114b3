"""What a table would take, by arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ffprune_env.comparison.paper_tables.contents import OURS, TABLES
from ffprune_env.comparison.paper_tables.estimate import (
    QUESTIONS,
    SEQUENTIAL_PASSES,
    TEST_TOKENS,
    Passes,
    Protocol,
    need,
    planned,
    searched,
    total,
)
from ffprune_env.comparison.plan import ANSWERING
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.evaluators.zero_shot_tasks import TASKS
from ffprune_env.lm.shapes import GIB, shape_of
from ffprune_env.methods.warm_start import SHARE, warm_name

SETTINGS = EvaluatorSettings(
    seq_len=2048, search_windows=4, final_windows=4, calibration_windows=32, criterion="wanda", calibration="ridge",
    openings=0, reward_model="cut", fresh_windows=False,
)  # fmt: skip
PROTOCOL = Protocol(SETTINGS, 1000, 1, 10, 2048, 100)


def test_passes_add_up():
    assert (Passes(1, 2, 3, 4, 5, 6) + Passes(test=1)).total == 22
    assert total([]).total == 0


def test_a_search_is_charged_its_budget_at_the_most_and_its_warm_start_a_share():
    budget = 1000 * 4
    start, search, finalists = searched(ANSWERING[OURS], 0.2, PROTOCOL)
    assert 0.98 * budget <= start + search + finalists <= budget
    assert 0 < finalists < search
    assert searched(ANSWERING["evolution"], 0.2, PROTOCOL) == (0, budget, 0)
    assert searched(ANSWERING["uniform"], 0.2, PROTOCOL) == (0, 0, 0)
    warm = sum(searched(ANSWERING[warm_name(OURS)], 0.3, PROTOCOL))
    assert 0.9 * SHARE * budget < warm <= SHARE * budget
    with pytest.raises(ValueError, match="ppo needs a budget of at least"):
        searched(ANSWERING[OURS], 0.2, replace(PROTOCOL, evaluations=1))
    # From damage curves: nine looks at two windows, each charged as three.
    assert searched(ANSWERING["ppo"], 0.2, PROTOCOL)[0] == 3 * 9 * 2


def test_a_table_takes_the_sum_of_its_cells():
    lines = {line.label: line for line in planned(TABLES[3], PROTOCOL)}
    assert list(lines) == ["dense", "ranking, calibration", "uniform at 20 %", f"{OURS} at 20 %"]
    test, window = 10 * 2048, 2048
    assert lines["dense"].passes == Passes(test=test)
    assert lines["ranking, calibration"].passes == Passes(calibration=32 * window)
    assert lines["uniform at 20 %"].passes == Passes(test=2 * test + 4 * window)
    opened = replace(PROTOCOL, settings=replace(SETTINGS, openings=64))
    (ranking,) = [x for x in planned(TABLES[3], opened) if x.label == "ranking, calibration"]
    assert ranking.passes == Passes(calibration=32 * window + 32 * window // 64)
    twice = planned(TABLES[3], replace(PROTOCOL, seeds=2))
    assert [line.cells for line in twice] == [1, 1, 1, 2]
    assert twice[-1].passes.total == 2 * lines[f"{OURS} at 20 %"].passes.total
    gradients = replace(PROTOCOL, settings=replace(SETTINGS, criterion="taylor", calibration="sequential"))
    lines = {line.label: line.passes for line in planned(TABLES[3], gradients)}
    assert lines["ranking, calibration"].calibration == 4 * 32 * window
    assert lines["uniform at 20 %"].calibration == SEQUENTIAL_PASSES * 32 * window


def test_questions_are_asked_of_every_method_once_and_all_text_is_that_of_wikitext():
    assert set(QUESTIONS) == set(TASKS)
    assert PROTOCOL.question_tokens == 100 * sum(tokens for _, tokens in QUESTIONS.values())
    every = replace(PROTOCOL, limit=None, test_windows=None, seeds=2)
    assert every.question_tokens == sum(n * tokens for n, tokens in QUESTIONS.values())
    assert TEST_TOKENS - 2048 < every.test_tokens <= TEST_TOKENS
    lines = planned(TABLES[1], every)
    assert [line.label for line in lines][:2] == ["dense", "ranking, calibration"]
    assert f"{OURS} at 20 %, other calibration text" in {line.label for line in lines}
    asked = sum(line.passes.questions for line in lines)
    assert asked == 8 * every.question_tokens  # two dense models, six rows; second seeds are not asked
    assert all(line.passes.questions == 0 for line in planned(TABLES[2], every))


def test_hours_and_gpus_follow_from_parameters():
    shape = shape_of("llama-7b")
    takes = need(shape, TABLES[3], PROTOCOL, 80, 400)
    tokens = total(planned(TABLES[3], PROTOCOL)).total
    beside = shape.calibration_operations(32 * 2048) / 4e14 / 3600
    assert takes.hours == pytest.approx(shape.forward_seconds(tokens, 400) / 3600 + beside)
    assert takes.weights == pytest.approx(shape.params * 2 / GIB)
    assert (takes.gpus, takes.copy) == (1, False)
    assert need(shape, TABLES[2], PROTOCOL, 80, 400).copy
    assert need(shape, TABLES[3], PROTOCOL, 80, 200).hours == pytest.approx(2 * takes.hours)
    large = shape_of("llama-2-70b")
    assert need(large, TABLES[3], PROTOCOL, 80, 400).gpus == 9  # 129 GiB of weights and 533 of factors
    on_host = replace(PROTOCOL, settings=replace(SETTINGS, factor_storage="cpu"))
    assert need(large, TABLES[3], on_host, 80, 400).gpus == 2
    cut = replace(PROTOCOL, settings=replace(SETTINGS, calibration="none"))
    assert need(large, TABLES[3], cut, 80, 400).factors == 0
