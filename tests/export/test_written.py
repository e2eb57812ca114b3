"""What is written is what was measured: ties, every field of the configs, and nothing that would be lost unsaid."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, tiny_model
from safetensors.torch import load_file, save_file
from tiny_runs import best_of, run_main, settings
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

import ffprune_env as ff
from ffprune_env.export.writable import why_not_saved
from ffprune_env.modeling.config_names import PRUNED_KEYS
from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics
from ffprune_env.run import saved_model

WRITTEN = ("opt", "llama", "llama-gqa", "mistral", "qwen2")
PROMPT = torch.tensor([[5, 17, 23, 200, 3]])
KEPT = [3, 20, 4, 7, 1, 24]


def ranked(model):
    prunable = PrunableModel(model)
    rng = np.random.default_rng(0)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    return prunable


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits.double()


def untied_folder(folder, family):
    """A checkpoint whose config ties embedding and head, and that holds a head of its own."""
    model = tiny_model(family).float()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", WRITTEN)
def test_a_head_of_its_own_stays_one_whatever_the_config_says(tmp_path, family):
    model = AutoModelForCausalLM.from_pretrained(untied_folder(tmp_path / "dense", family))
    assert model.config.tie_word_embeddings
    prunable = ranked(model)
    with prunable.pruned(KEPT) as pruned:
        expected = logits(pruned)
    ff.save_pruned(prunable, KEPT, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    again = ff.load_pruned(tmp_path / "out")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-4)
    assert sum(p.numel() for p in again.parameters()) == prunable.params(KEPT)


@pytest.mark.parametrize("family", WRITTEN)
def test_a_head_that_is_the_embedding_is_written_once(tmp_path, family):
    model = tiny_model(family)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = model.get_input_embeddings().weight
    prunable = ranked(model)
    with prunable.pruned(KEPT) as pruned:
        expected = logits(pruned)
    ff.save_pruned(prunable, KEPT, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(x.shape == model.lm_head.weight.shape for x in stored.values()) == 1
    torch.testing.assert_close(logits(ff.load_pruned(tmp_path / "out")), expected, rtol=0, atol=1e-9)


ODD = {
    "use_cache": False,
    "attention_dropout": 0.125,
    "custom": {"a": [1, None]},
    "eos_token_id": [2, 7],
    "bos_token_id": None,
    "pad_token_id": 5,
    "sep_token_id": 3,
    "decoder_start_token_id": 5,
    "initializer_range": 0.5,
    "id2label": {0: "x", 1: "y"},
    "problem_type": "regression",
    "task_specific_params": {"t": {"n": 1}},
    "tokenizer_class": "Foo",
    "chunk_size_feed_forward": 3,
    "_secret": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ODD_BY_FAMILY = {
    "opt": {"activation_function": "gelu", "do_layer_norm_before": False, "layerdrop": 0.1, "word_embed_proj_dim": 16},
    "llama": {"rope_parameters": LLAMA3, "hidden_act": "gelu", "attention_bias": True, "rms_norm_eps": 1e-3},
    "mistral": {"rope_parameters": LLAMA3, "sliding_window": 5, "head_dim": 12, "hidden_act": "relu"},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "rope_parameters": LLAMA3},
}
GENERATION = {
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 7,
    "eos_token_id": [2, 9],
    "repetition_penalty": 1.5,
    "custom_note": "x",
}
CHANGED = {"model_type", "architectures", "auto_map", *PRUNED_KEYS}


@pytest.mark.parametrize("family", ODD_BY_FAMILY)
def test_every_field_of_config_and_generation_config_survives(tmp_path, family):
    model_type, usual = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**usual, **ODD, **ODD_BY_FAMILY[family]})
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    dense.generation_config = GenerationConfig(**GENERATION)
    dense.save_pretrained(tmp_path / "dense")
    prunable = ranked(AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval())
    ff.save_pruned(prunable, KEPT, tmp_path / "out")
    for file, changed in (("config.json", CHANGED), ("generation_config.json", set())):
        before, after = (json.loads((tmp_path / name / file).read_text()) for name in ("dense", "out"))
        names = (before.keys() | after.keys()) - changed
        assert {name: after.get(name, "absent") for name in names} == {
            name: before.get(name, "absent") for name in names
        }
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    with prunable.pruned(KEPT) as pruned:
        torch.testing.assert_close(logits(ff.load_pruned(tmp_path / "out")), logits(pruned), rtol=0, atol=1e-9)


def add_module(model):
    model.model.layers[1].mlp.adapter = nn.Linear(32, 32, dtype=torch.float64)


def swap_activation(model):
    model.model.layers[0].mlp.act_fn = nn.GELU()


def add_parameter(model):
    model.model.layers[2].scale = nn.Parameter(torch.ones(1, dtype=torch.float64))


def set_epsilon(model):
    model.model.norm.variance_epsilon = 0.5


def scale_one_attention(model):
    model.model.layers[0].self_attn.scaling *= 2


def edit_config_late(model):
    model.config.rope_parameters["rope_theta"] = 100.0


def slow_rotations(model):
    model.model.rotary_emb.inv_freq *= 0.5


def double_by_hook(model):
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * 2)


def mix_dtypes(model):
    model.model.norm.half()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (add_module, r"model\.layers\.1\.mlp\.adapter is a torch\S+Linear, where a pruned model has absent"),
        (swap_activation, r"model\.layers\.0\.mlp\.act_fn is a torch\S+GELU, where a pruned model has a transformers"),
        (add_parameter, r"no place for 1 of its tensors, .* such as model\.layers\.2\.scale"),
        *(
            (
                change,
                r"what would be written is not the model in memory, its logits are off by \d\S* of their size: a ",
            )
            for change in (set_epsilon, scale_one_attention, edit_config_late, slow_rotations, double_by_hook)
        ),
        (mix_dtypes, r"parameters of 2 dtypes, float64 \(lm_head\.weight\), float16 \(model\.norm\.weight\)"),
    ],
)
def test_what_was_changed_in_memory_and_would_be_lost_is_refused(tmp_path, change, says):
    model = tiny_model("llama")
    change(model)
    prunable = ranked(model)
    with pytest.raises(ValueError, match=says) as caught:
        ff.save_pruned(prunable, KEPT, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_model_with_code_of_its_own_is_refused_whatever_its_config_calls_itself(tmp_path):
    model = tiny_model("llama")

    class Scaled(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits / 2
            return output

    assert why_not_saved(model) is None
    model.__class__ = Scaled
    assert why_not_saved(model) is not None
    with pytest.raises(ValueError, match=r"Scaled cannot be written: .* brings code of its own"):
        ff.save_pruned(ranked(model), KEPT, tmp_path / "out")


@pytest.mark.parametrize("family", WRITTEN)
def test_biases_that_a_calibration_made_are_written_or_refused(tmp_path, family, windows):
    prunable = PrunableModel(tiny_model(family))
    stats = collect_statistics(prunable, windows, gram=False)
    prunable.rank([np.arange(layout.n_members) for layout in prunable.layouts])
    bias = FlapBias(prunable, stats)
    if family in ("opt", "llama-gqa"):  # whose dense layers have such biases
        ff.save_pruned(prunable, KEPT, tmp_path / "out", calibration=bias)
        with prunable.pruned(KEPT, bias) as pruned:
            torch.testing.assert_close(logits(ff.load_pruned(tmp_path / "out")), logits(pruned), rtol=0, atol=1e-9)
        assert "| calibration | FlapBias |" in (tmp_path / "out" / "README.md").read_text()
        return
    with pytest.raises(ValueError, match=r"calibrated by FlapBias cannot be written: .*_proj\.bias"):
        ff.save_pruned(prunable, KEPT, tmp_path / "out", calibration=bias)
    assert not (tmp_path / "out").exists()


def test_a_run_of_an_untied_checkpoint_writes_what_it_measured(ppo_script, text_file, tmp_path):
    folder = untied_folder(tmp_path / "dense", "llama-gqa")
    assert run_main(ppo_script, settings(folder, text_file, tmp_path / "run", dtype="float32")) == 0
    best = best_of(tmp_path / "run")
    assert best["saved"]["test_ppl"] == pytest.approx(best["calibration"]["chosen"]["test_ppl"], rel=1e-5)


def test_a_run_whose_model_on_disk_is_another_says_so_and_fails(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, capsys
):
    load = saved_model.load_pruned

    def loads_another(folder, **options):
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] *= 1.5
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return load(folder, **options)

    monkeypatch.setattr(saved_model, "load_pruned", loads_another)
    assert run_main(ppo_script, settings(tiny_folder, text_file, tmp_path / "run", dtype="float32")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    best = best_of(tmp_path / "run")
    written, measured = best["saved"], best["calibration"]["chosen"]
    assert abs(math.log(written["search_ppl"] / measured["search_ppl"])) > 1e-3
    assert line.startswith(f"error: what was written is not what was measured: {tmp_path / 'run' / 'model'}, on search")
    assert f"has perplexity {written['search_ppl']:.4f}, the model measured has {measured['search_ppl']:.4f}" in line
