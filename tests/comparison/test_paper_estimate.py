"""What a table would take, by arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import tiny_model

from ffprune_env.comparison.paper_tables.contents import OURS, TABLES
from ffprune_env.comparison.paper_tables.dry_run import passes_tables
from ffprune_env.comparison.paper_tables.estimate import (
    QUESTIONS,
    SEQUENTIAL_PASSES,
    TEST_TOKENS,
    Passes,
    Protocol,
    need,
    planned,
    rebuilding_passes,
    searched,
    total,
)
from ffprune_env.comparison.plan import ANSWERING
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.evaluators.zero_shot_tasks import TASKS
from ffprune_env.lm.shapes import GIB, Shape, shape_of
from ffprune_env.methods.rebuilding import svd_llm as svd_llm_module
from ffprune_env.methods.warm_start import SHARE, warm_name

SETTINGS = EvaluatorSettings(
    seq_len=2048, search_windows=4, final_windows=4, calibration_windows=32, criterion="wanda", calibration="ridge",
    openings=0, reward_model="cut", fresh_windows=False,
)  # fmt: skip
PROTOCOL = Protocol(SETTINGS, 1000, 1, 10, 2048, 100)
SHAPE = shape_of("llama-7b")


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
    lines = {line.label: line for line in planned(TABLES[3], PROTOCOL, SHAPE)}
    assert list(lines) == ["dense", "ranking, calibration", "uniform at 20 %", f"{OURS} at 20 %"]
    test, window = 10 * 2048, 2048
    assert lines["dense"].passes == Passes(test=test)
    assert lines["ranking, calibration"].passes == Passes(calibration=32 * window)
    assert lines["uniform at 20 %"].passes == Passes(test=2 * test + 4 * window)
    opened = replace(PROTOCOL, settings=replace(SETTINGS, openings=64))
    (ranking,) = [x for x in planned(TABLES[3], opened, SHAPE) if x.label == "ranking, calibration"]
    assert ranking.passes == Passes(calibration=32 * window + 32 * window // 64)
    twice = planned(TABLES[3], replace(PROTOCOL, seeds=2), SHAPE)
    assert [line.cells for line in twice] == [1, 1, 1, 2]
    assert twice[-1].passes.total == 2 * lines[f"{OURS} at 20 %"].passes.total
    gradients = replace(PROTOCOL, settings=replace(SETTINGS, criterion="taylor", calibration="sequential"))
    lines = {line.label: line.passes for line in planned(TABLES[3], gradients, SHAPE)}
    assert lines["ranking, calibration"].calibration == 4 * 32 * window
    assert lines["uniform at 20 %"].calibration == SEQUENTIAL_PASSES * 32 * window


def test_questions_are_asked_of_every_cell_once_and_all_text_is_that_of_wikitext():
    assert set(QUESTIONS) == set(TASKS)
    assert PROTOCOL.question_tokens == 100 * sum(tokens for _, tokens in QUESTIONS.values())
    every = replace(PROTOCOL, limit=None, test_windows=None, seeds=2)
    assert every.question_tokens == sum(n * tokens for n, tokens in QUESTIONS.values())
    assert TEST_TOKENS - 2048 < every.test_tokens <= TEST_TOKENS
    lines = planned(TABLES[1], every, SHAPE)
    assert [line.label for line in lines][:2] == ["dense", "ranking, calibration"]
    assert f"{OURS} at 20 %, other calibration text" in {line.label for line in lines}
    asked = sum(line.passes.questions for line in lines)
    assert asked == 11 * every.question_tokens  # two dense models, six rows, and the second seeds of three of them
    assert all(line.passes.questions == 0 for line in planned(TABLES[2], every, SHAPE))


def test_hours_and_gpus_follow_from_parameters():
    shape = shape_of("llama-7b")
    takes = need(shape, TABLES[3], PROTOCOL, 80, 400)
    tokens = total(planned(TABLES[3], PROTOCOL, shape)).total
    beside = shape.calibration_operations(32 * 2048) / 4e14 / 3600
    assert takes.hours == pytest.approx(shape.forward_seconds(tokens, 400) / 3600 + beside)
    assert takes.weights == pytest.approx(shape.params * 2 / GIB)
    assert (takes.gpus, takes.copy) == (1, False)
    assert need(shape, TABLES[2], PROTOCOL, 80, 400).copy
    assert need(shape, TABLES[3], PROTOCOL, 80, 200).hours == pytest.approx(2 * takes.hours)
    large = shape_of("llama-2-70b")
    assert need(large, TABLES[3], PROTOCOL, 80, 400).gpus == 7  # 129 GiB of weights and 355 of factors
    on_host = replace(PROTOCOL, settings=replace(SETTINGS, factor_storage="cpu"))
    assert need(large, TABLES[3], on_host, 80, 400).gpus == 2
    cut = replace(PROTOCOL, settings=replace(SETTINGS, calibration="none"))
    assert need(large, TABLES[3], cut, 80, 400).factors == 0


def test_factors_are_held_twice_where_the_reward_is_calibrated():
    shape = shape_of("llama-2-70b")
    calibrated = replace(PROTOCOL, settings=replace(SETTINGS, reward_model="calibrated"))
    once, twice = (need(shape, TABLES[3], protocol, 80, 400) for protocol in (PROTOCOL, calibrated))
    assert once.factors * GIB == 4 * 80 * sum(n**2 + 8192 * n for n in (8192, 28672))
    assert twice.factors == 1.5 * once.factors
    assert (once.gpus, twice.gpus) == (7, 9)


@pytest.mark.parametrize("room", [2**11, 2**14, 2**16, 2**30])
def test_svd_llm_takes_a_run_for_as_many_gram_matrices_as_fit(room, windows, monkeypatch):
    """Against its own runs, on a model whose inputs have 32 and 24 columns; a 7B model takes six."""
    model, runs, real = tiny_model("llama").float(), [], svd_llm_module.second_moments
    monkeypatch.setattr(svd_llm_module, "GRAM_BYTES", room)
    monkeypatch.setattr(svd_llm_module, "second_moments", lambda *given: runs.append(given[1]) or real(*given))
    svd_llm_module.svd_llm(model, windows, 100)
    config = model.config
    shape = Shape(
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads,
        config.num_key_value_heads, config.vocab_size,
    )  # fmt: skip
    assert shape.gram_runs(room) == len(runs)
    assert rebuilding_passes("svd-llm", shape_of("llama-7b")) == 6 + 2
    (line,) = [x for x in planned(TABLES[2], PROTOCOL, shape_of("llama-7b")) if x.label == "svd-llm at 30 %"]
    assert line.passes.calibration == 8 * 32 * 2048


def test_models_that_take_other_tokens_get_tables_of_their_own():
    names = ("llama-7b", "llama-2-7b", "llama-2-70b")
    titles = [str(shown.title) for shown in passes_tables(TABLES[2], names, PROTOCOL)]
    assert titles == [f"Table 2: millions of tokens through {x}" for x in ("llama-7b, llama-2-7b", "llama-2-70b")]
    (shown,) = passes_tables(TABLES[4], names, PROTOCOL)
    assert shown.title == "Table 4: millions of tokens through a model"
