"""Query heads that share keys, removed one of every key/value head at a time, or a key/value head with all of its."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, load_script
from plain import plain
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.export.folder import save_pruned
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.tiny_families import tiny_of_family
from ffprune_env.modeling.config_names import HEADS_KEY, KV_HEADS_KEY, KV_INDEX_KEY
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.criteria import CRITERIA, Evidence
from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.head_groups import best_first
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.pruning.stored_order import order_as_json, order_from_json
from ffprune_env.pruning.unit_layout import member_columns
from ffprune_env.pruning.units import find_units

WAYS = ("balanced", "groups")
# Nine query heads on three key/value heads, as the default model has them.
NINE = {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 4, "num_hidden_layers": 2}


def nine_heads():
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=256, intermediate_size=64, max_position_embeddings=128, **NINE)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def ranked(heads, seed=1, model=None):
    prunable = PrunableModel(model or nine_heads(), heads=heads)
    rng = np.random.default_rng(seed)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    return prunable


def test_the_next_group_is_the_next_best_query_head_of_every_key_head():
    scores = np.array([5.0, 9.0, 1.0, 2.0, 8.0, 4.0, 7.0, 7.0, 6.0])
    shared = torch.arange(9) // 3
    assert best_first(scores, shared).tolist() == [1, 4, 6, 0, 5, 7, 2, 3, 8]
    assert best_first(scores).tolist() == [1, 4, 6, 7, 8, 0, 5, 3, 2]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_balanced_heads_share_keys_evenly(kept):
    prunable = ranked("balanced")
    assert [unit.n_groups for unit in prunable.units] == [3, 64] * 2
    members = prunable.kept_groups([kept, 64] * 2)[0]
    assert np.bincount(members // 3).tolist() == [kept] * 3


@pytest.mark.parametrize("heads", WAYS)
def test_generation_with_the_cache_is_that_of_a_masked_copy(heads, windows):
    model = nine_heads()
    reference = copy.deepcopy(model)
    prunable, kept = ranked(heads, model=model), [2, 40, 1, 30]
    for layout, members in zip(find_units(reference, heads=heads), prunable.kept_groups(kept), strict=True):
        gone = torch.from_numpy(np.setdiff1d(np.arange(layout.n_members), members))
        layout.output.weight.data[:, member_columns(layout, gone)] = 0
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = reference.generate(windows, **settings)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with prunable.pruned(kept) as pruned:
        assert torch.equal(pruned.generate(windows, **settings), expected)
        cache = pruned(windows, use_cache=True).past_key_values
    assert [layer.keys.shape[1] for layer in cache.layers] == ([2, 1] if heads == "groups" else [3, 3])
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("heads", WAYS)
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_what_goes_at_once(name, heads, windows):
    """Of a key/value head by itself the score of all of its columns; else of query heads, ranked among their own."""
    prunable = PrunableModel(nine_heads(), heads=heads)
    stats, gradients = collect_statistics(prunable, windows), collect_gradients(prunable, windows)
    scores = CRITERIA[name].score(prunable, Evidence(stats, gradients, lambda: stats.grams, 0.01))
    assert [len(x) for x in scores] == [3 if heads == "groups" else 9, 64] * 2
    if heads == "balanced" or name == "wanda":
        single = CRITERIA[name].score(
            PrunableModel(nine_heads()), Evidence(stats, gradients, lambda: stats.grams, 0.01)
        )
        expected = single[0] if heads == "balanced" else single[0].reshape(3, 3).sum(1)
        np.testing.assert_allclose(scores[0], expected)


@pytest.mark.parametrize("heads", WAYS)
def test_calibrations_fit_them(heads, windows):
    """With every group kept all of them are the dense model; with fewer they serve the text that they were made on."""
    prunable = PrunableModel(nine_heads(), heads=heads)
    stats = collect_statistics(prunable, windows)
    prunable.rank(CRITERIA["wanda"].score(prunable, Evidence(stats, None, None, 0.01)))
    ridge, whole = RidgeCalibration(prunable, stats), [unit.n_groups for unit in prunable.units]
    kept = [2, 40, 1, 30]
    with torch.no_grad():
        dense = prunable.model(windows).logits

        def off(counts, calibration):
            with prunable.pruned(counts, calibration) as model:
                return float((model(windows).logits - dense).square().mean())

        cut, made = off(kept, None), [ridge, SequentialCalibration(ridge, kept, windows), FlapBias(prunable, stats)]
        assert all(off(kept, calibration) < cut for calibration in made[:2])
        assert np.isfinite(off(kept, made[2]))
        assert max(off(whole, calibration) for calibration in (ridge, made[2])) < 1e-20


def test_an_order_of_single_heads_is_none_of_balanced_ones():
    prunable = PrunableModel(nine_heads(), heads="balanced")
    order = [members.numpy() for members in prunable.order]
    with pytest.raises(ValueError, match=r"self_attn: its order is not one of balanced heads"):
        prunable.rank_as([np.arange(9), *order[1:]])
    taken = ranked("balanced", 2)
    prunable.rank_as([members.numpy() for members in taken.order])
    assert all(torch.equal(one, other) for one, other in zip(prunable.order, taken.order, strict=True))


@pytest.mark.parametrize("heads", WAYS)
def test_a_written_order_is_of_what_goes_at_once(heads, tmp_path):
    prunable = ranked(heads)
    written = order_as_json(prunable)
    read = order_from_json(written, nine_heads(), tmp_path, "search again", heads)
    assert all(np.array_equal(one, other.numpy()) for one, other in zip(read, prunable.order, strict=True))
    if heads == "groups":
        with pytest.raises(ValueError, match="it must hold each of 0 to 8 once: search again"):
            order_from_json(written, nine_heads(), tmp_path, "search again")


@pytest.mark.parametrize("heads", WAYS)
def test_heads_that_went_one_by_one_go_on_so(heads):
    model = nine_heads()
    attention = model.model.layers[1].self_attn
    attention.q_proj, attention.o_proj = torch.nn.Linear(36, 20, False), torch.nn.Linear(20, 36, False)
    attention.register_buffer("kv_index", torch.tensor([0, 0, 0, 1, 2]))
    with pytest.raises(ValueError, match=rf"layers\.1\.self_attn has lost .* by heads='{heads}': give 'single'"):
        find_units(model, heads=heads)
    assert find_units(model)[2].unit.n_groups == 5


def test_heads_left_evenly_shared_go_on_in_balance():
    model = nine_heads()
    attention = model.model.layers[1].self_attn
    attention.q_proj, attention.o_proj = torch.nn.Linear(36, 24, False), torch.nn.Linear(24, 36, False)
    attention.register_buffer("kv_index", torch.tensor([0, 0, 1, 1, 2, 2]))
    assert find_units(model, heads="balanced")[2].unit.n_groups == 2


@pytest.mark.parametrize("heads", WAYS)
def test_what_is_written_needs_no_index(heads, tmp_path, windows):
    """Sizes of layers are all that is left of how heads went: stock attention runs what is read back."""
    prunable, kept = ranked(heads), [2, 40, 1, 64]
    save_pruned(prunable, kept, tmp_path / "model", tokenizer=byte_tokenizer())
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config[KV_INDEX_KEY] == [None, None]
    assert (config[HEADS_KEY], config[KV_HEADS_KEY]) == ([6, 3], [2, 1] if heads == "groups" else [3, 3])
    assert not [name for name in load_file(tmp_path / "model" / "model.safetensors") if "kv_index" in name]
    at_once = {"balanced": "a query head of every key/value head", "groups": "a key/value head with its query heads"}
    assert f"of an attention | {at_once[heads]} |" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    read = load_pruned(tmp_path / "model")
    assert not read.config._attn_implementation.startswith("ffprune")
    assert sum(parameter.numel() for parameter in read.parameters()) == prunable.params(kept)
    with torch.no_grad():
        with prunable.pruned(kept) as pruned:
            expected = pruned(windows).logits
        torch.testing.assert_close(read(windows).logits, expected, rtol=0, atol=1e-9)
        removed = load_script("evaluate/perplexity.py").removed
        assert removed(read, str(tmp_path / "model")) == pytest.approx(
            (prunable.sparsity(kept), prunable.total_sparsity(kept)), abs=1e-12
        )
        again = ranked(heads, 2, read)  # and prunes it once more
        assert [unit.n_groups for unit in again.units] == kept
        torch.testing.assert_close(read(windows).logits, expected, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_balanced_heads_run_in_flex_attention_and_in_pages(tmp_path, windows):
    """Both are compiled for the sizes of each layer, which takes a minute."""
    prunable, kept = ranked("balanced", model=tiny_of_family("llama", 4)), [1, 128, 2, 64] * 2
    save_pruned(prunable, kept, tmp_path / "model", tokenizer=byte_tokenizer())
    model = load_pruned(tmp_path / "model").float()
    with torch.no_grad():
        expected = model(windows).logits
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(windows).logits, expected, rtol=0, atol=1e-4)
    model.set_attn_implementation("sdpa")
    settings = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    prompts = windows[:, :12]
    texts = model.generate(prompts, generation_config=settings, attention_mask=torch.ones_like(prompts))
    pages = ContinuousBatchingConfig(num_blocks=32, page_size=16, max_batch_tokens=128, use_cuda_graph=False)
    answers = model.generate_batch(prompts.tolist(), generation_config=settings, continuous_batching_config=pages)
    assert [answer.generated_tokens for answer in answers.values()] == texts[:, 12:].tolist()


def test_the_setting_is_checked_before_a_model_is_loaded():
    with pytest.raises(ValueError, match="unknown heads 'three'; allowed are single, balanced, groups"):
        plain(heads="three").require_allowed()
    assert EvaluatorSettings().heads == "balanced"
