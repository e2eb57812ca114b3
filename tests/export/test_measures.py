"""What a budget counts is what is there once the model is written."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import byte_tokenizer, tiny_model
from gguf_models import MERGES, wide_model

import ffprune_env as ff
from ffprune_env.budget.budget import Budget
from ffprune_env.budget.mapping import allocate
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.export.measures import measure_of
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.run.budget_report import BudgetReport

WRITTEN = ("opt", "llama", "llama-gqa", "mistral", "qwen2", "qwen3", "gemma2")


def ranked(model, heads="balanced"):
    prunable = PrunableModel(model, heads=heads)
    rng = np.random.default_rng(0)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    return prunable


def drawn(prunable, seed):
    """Some groups of every unit."""
    rng = np.random.default_rng(seed)
    return np.array([rng.integers(1, unit.n_groups + 1) for unit in prunable.units])


@pytest.mark.parametrize("heads", ["balanced", "groups"])
@pytest.mark.parametrize("family", WRITTEN)
def test_what_is_predicted_is_what_is_written(family, heads, tmp_path):
    prunable, tokenizer = ranked(tiny_model(family).float(), heads), byte_tokenizer()
    kept = drawn(prunable, 3)
    ff.save_pruned(prunable, kept, tmp_path / "model", tokenizer)
    for name in ("parameters", "kv", "size"):
        measure = measure_of(prunable, name, tokenizer)
        report = BudgetReport(Budget(name, 0.5, "less"), measure)
        written = report.written(tmp_path / "model", tmp_path / "none.gguf")
        predicted = measure.of(kept)
        if name == "size":  # of which the header has fewer digits
            assert predicted - 256 <= written <= predicted
        else:
            assert written == predicted
        whole = [unit.n_groups for unit in prunable.units]
        assert measure.of(whole) == measure.dense


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["llama-gqa", "mistral", "qwen2", "gemma2"])
def test_what_is_written_never_takes_more_than_was_predicted(family, seed, tmp_path):
    """Query heads that go one by one leave layers that share keys unevenly, and each of these has a table of who reads
    what."""
    prunable = PrunableModel(tiny_model(family).float(), heads="single", channels_per_group=1)
    rng = np.random.default_rng(0)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    measure = measure_of(prunable, "size", byte_tokenizer())
    kept = drawn(prunable, seed)
    if seed == 0:  # hardly anything goes, and every layer has the table
        kept = np.array([unit.n_groups - (unit.kind == "attention") for unit in prunable.units])
    ff.save_pruned(prunable, kept, tmp_path / "model")
    written = BudgetReport(Budget("size", 0.5, "less"), measure).written(tmp_path / "model", tmp_path / "none.gguf")
    unread = measure_of(prunable, "parameters", byte_tokenizer()).of(kept) - prunable.params(kept)
    assert written <= measure.of(kept) <= written + unread * 4 + 3 * 512
    again = PrunableModel(ff.load_pruned(tmp_path / "model"), heads="single")
    assert measure_of(again, "size", byte_tokenizer()).dense <= measure.dense


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_k_m", "q6_k", "q2_k"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_size_of_a_gguf_file_is_known_before(family, kind, tmp_path):
    pytest.importorskip("cyllama")
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "tie_word_embeddings": True}
    prunable = PrunableModel(wide_model(family, **wide), channels_per_group=32, heads="balanced")
    rng, tokenizer = np.random.default_rng(0), byte_tokenizer(MERGES)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    measure = measure_of(prunable, "size", tokenizer, kind)
    for seed in range(2):
        scores = np.random.default_rng(seed).normal(size=len(measure.units))
        kept = allocate(scores, 0.3, measure.units).kept
        ff.save_pruned(prunable, kept, tmp_path / f"{seed}", tokenizer)
        export_gguf(tmp_path / f"{seed}", tmp_path / f"{seed}.gguf", kind)
        written = (tmp_path / f"{seed}.gguf").stat().st_size
        assert 0 <= measure.of(kept) - written <= 0.02 * written + 2048


@pytest.mark.parametrize("tied", [True, False])
def test_the_size_of_a_gguf_file_is_known_before_whatever_the_config_says_of_the_head(tied, tmp_path):
    model, tokenizer = wide_model("llama", tie_word_embeddings=tied), byte_tokenizer(MERGES)
    model.config.tie_word_embeddings = not tied
    prunable = ranked(model)
    measure, kept = measure_of(prunable, "size", tokenizer, "f16"), drawn(prunable, 3)
    ff.save_pruned(prunable, kept, tmp_path / "model", tokenizer)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f16")
    written = (tmp_path / "model.gguf").stat().st_size
    assert 0 <= measure.of(kept) - written <= 0.02 * written + 2048


def test_sizes_that_a_file_does_not_keep_to_are_refused():
    with pytest.raises(ValueError, match=r"--budget size: query heads that go one by one .* take --heads balanced"):
        measure_of(ranked(tiny_model("llama-gqa"), "single"), "size", byte_tokenizer(), "f16")


def test_shared_keys_stay_until_the_last_head_goes():
    measure = measure_of(ranked(tiny_model("llama-gqa").float()), "kv", byte_tokenizer())
    with pytest.raises(ValueError, match=r"cannot be met: with --a-min 0.2 at least 384 B stay of 384 B"):
        measure.sparsity(Budget.parse(["kv", "0.5x"]))
    assert 0 < measure.sparsity(Budget.parse(["kv", "0.5x"]), a_min=0.0) < 1
