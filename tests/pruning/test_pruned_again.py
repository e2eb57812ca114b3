"""A pruned model pruned further: what it computes, what is written of it, and a run of it to its end."""

from __future__ import annotations

import copy
import json

import gguf
import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from tiny_runs import best_of, run_main, settings
from transformers import AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.export.writable import why_not_saved
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.criteria import CRITERIA, Evidence
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.pruning.unit_layout import member_columns
from ffprune_env.pruning.units import find_units

FAMILIES = ("opt", "llama", "llama-gqa", "mistral", "qwen2")
# Heads and channels of three layers, which differ; the second layer keeps all of its heads both times.
FIRST, SECOND = [3, 20, 4, 13, 2, 24], [2, 11, 4, 13, 1, 9]
PROMPT = torch.tensor([[5, 17, 23, 200, 3, 99, 42]])


def ranked(model, seed):
    prunable = PrunableModel(model)
    rng = np.random.default_rng(seed)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    return prunable


def logits(model, **kwargs):
    with torch.no_grad():
        return model(PROMPT, **kwargs).logits


def masked(model, members):
    """The slow, obvious way: a copy whose output projections ignore the heads and channels that go."""
    reference = copy.deepcopy(model)
    for layout, kept in zip(find_units(reference), members, strict=True):
        gone = np.setdiff1d(np.arange(layout.n_members), kept)
        layout.output.weight.data[:, member_columns(layout, torch.from_numpy(gone))] = 0
    return reference


@pytest.fixture(params=FAMILIES)
def once(request, tmp_path):
    """A pruned folder, and what of the dense model it holds: its members per unit."""
    prunable = ranked(tiny_model(request.param), 0)
    ff.save_pruned(prunable, FIRST, tmp_path / "once", tokenizer=byte_tokenizer())
    return tmp_path / "once", request.param, prunable.kept_groups(FIRST)


def test_it_computes_what_a_masked_copy_computes_in_memory_and_on_disk(once, tmp_path):
    folder, _, _ = once
    model = ff.load_pruned(folder)
    before, reference = logits(model), copy.deepcopy(model)
    prunable = ranked(model, 1)
    assert why_not_saved(model) is None
    assert [unit.n_groups for unit in prunable.units] == FIRST
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-9)
    expected = logits(masked(reference, prunable.kept_groups(SECOND)))
    assert (expected - before).abs().max() > 1e-3
    with prunable.pruned(SECOND) as pruned:
        torch.testing.assert_close(logits(pruned), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits(pruned, use_cache=False), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-9)
    ff.save_pruned(prunable, SECOND, tmp_path / "twice")
    again = ff.load_pruned(tmp_path / "twice")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-9)
    assert sum(p.numel() for p in again.parameters()) == prunable.params(SECOND)
    for implementation in ("eager", "sdpa"):
        again.set_attn_implementation(implementation)
        torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)


def test_two_steps_are_one(once, tmp_path):
    """The same heads and channels, removed at once, give the same folder but for its card."""
    folder, family, first = once
    again = ranked(ff.load_pruned(folder), 1)
    ff.save_pruned(again, SECOND, tmp_path / "twice", tokenizer=byte_tokenizer())
    left = [all_of[kept] for all_of, kept in zip(first, again.kept_groups(SECOND), strict=True)]
    dense = PrunableModel(tiny_model(family))
    dense.rank([np.isin(np.arange(x.n_members), kept) for x, kept in zip(dense.layouts, left, strict=True)])
    ff.save_pruned(dense, SECOND, tmp_path / "at-once", tokenizer=byte_tokenizer())
    files = {path.name for path in (tmp_path / "twice").iterdir()}
    assert files == {path.name for path in (tmp_path / "at-once").iterdir()}
    for name in files - {"README.md"}:
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "at-once" / name).read_bytes(), name
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert config["num_attention_heads"] == 4
    assert config["ffn_dim" if family == "opt" else "intermediate_size"] == 24
    assert config["num_attention_heads_per_layer"] == SECOND[::2]
    assert (
        "pruned before: all figures here are relative to what that had left"
        in (tmp_path / "twice" / "README.md").read_text()
    )


def test_without_a_further_cut_it_is_written_as_it_was(once, tmp_path):
    folder, _, _ = once
    ff.save_pruned(ranked(ff.load_pruned(folder), 1), FIRST, tmp_path / "same")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()


def test_every_criterion_and_calibration_takes_it(once, windows, tmp_path):
    folder, _, _ = once
    prunable = PrunableModel(ff.load_pruned(folder, dtype="float32"), channels_per_group=2)
    stats, gradients = collect_statistics(prunable, windows), collect_gradients(prunable, windows)
    scores = {
        name: criterion.score(prunable, Evidence(stats, gradients, lambda: stats.grams, 0.01))
        for name, criterion in CRITERIA.items()
    }
    kept = np.maximum(1, np.array([unit.n_groups for unit in prunable.units]) // 2)
    for name, score in scores.items():
        prunable.rank(score)
        first = RidgeCalibration(prunable, stats)
        for i, calibration in enumerate((first, SequentialCalibration(first, kept, windows))):
            ff.save_pruned(prunable, kept, tmp_path / f"{name}-{i}", calibration=calibration)
            with prunable.pruned(kept, calibration) as pruned:
                expected = logits(pruned)
            torch.testing.assert_close(logits(ff.load_pruned(tmp_path / f"{name}-{i}")), expected, rtol=0, atol=1e-4)


def test_a_grouped_layer_with_a_query_head_for_every_key_head_stays_grouped(tmp_path):
    """Two query heads are left of four, on both key heads or on one: keys are shared all the same."""
    for seed in range(3):
        ff.save_pruned(ranked(tiny_model("llama-gqa"), seed), [2, 20] * 3, tmp_path / f"{seed}")
        model = ff.load_pruned(tmp_path / f"{seed}")
        before, reference = logits(model), copy.deepcopy(model)
        prunable = ranked(model, seed + 7)
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-9)
        with prunable.pruned([1, 20] * 3) as pruned:
            expected = logits(masked(reference, prunable.kept_groups([1, 20] * 3)))
            torch.testing.assert_close(logits(pruned), expected, rtol=0, atol=1e-9)


def test_a_model_that_lost_channels_alone_is_pruned_further(tmp_path):
    ff.save_pruned(ranked(tiny_model("llama-gqa"), 0), [4, 20, 4, 13, 4, 24], tmp_path / "once")
    model = ff.load_pruned(tmp_path / "once")
    reference = copy.deepcopy(model)
    prunable = ranked(model, 1)
    ff.save_pruned(prunable, SECOND, tmp_path / "twice")
    expected = logits(masked(reference, prunable.kept_groups(SECOND)))
    torch.testing.assert_close(logits(ff.load_pruned(tmp_path / "twice")), expected, rtol=0, atol=1e-9)


def test_a_gguf_of_a_model_pruned_twice_holds_its_sizes(tmp_path):
    ff.save_pruned(ranked(tiny_model("llama-gqa").float(), 0), FIRST, tmp_path / "once")
    prunable = ranked(ff.load_pruned(tmp_path / "once"), 1)
    ff.save_pruned(prunable, SECOND, tmp_path / "twice", tokenizer=byte_tokenizer([("e", "n"), ("1", "2")]))
    export_gguf(tmp_path / "twice", tmp_path / "model.gguf")
    field = {name: x.contents() for name, x in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert field["deci.attention.head_count"] == SECOND[::2]
    assert field["deci.feed_forward_length"] == SECOND[1::2]
    layers = AutoModelForCausalLM.from_pretrained(tmp_path / "twice").model.layers
    read = [x.self_attn.k_proj.out_features // x.self_attn.head_dim for x in layers]
    assert field["deci.attention.head_count_kv"][1:] == read[1:]


def test_a_run_of_a_pruned_folder_goes_to_its_end(ppo_script, text_file, tmp_path, whole):
    run = tmp_path / "run"
    assert run_main(ppo_script, settings(whole / "model", text_file, run, sparsity=0.15)) == 0
    first, second = best_of(whole), best_of(run)
    assert second["dense"]["params"] == first["saved"]["params"]
    assert second["dense"]["test_ppl"] == pytest.approx(first["saved"]["test_ppl"], rel=0.04)
    assert second["saved"]["params"] < first["saved"]["params"]
    assert 0.15 <= second["saved"]["sparsity"] < 0.2
    model = ff.load_pruned(run / "model")
    assert sum(p.numel() for p in model.parameters()) == second["saved"]["params"]
    assert "pruned before" in (run / "model" / "README.md").read_text()
