"""Sizes of models by arithmetic, against their published totals and against models that are built without weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.lm.model_names import DEFAULT_MODEL, HUB_MODELS
from ffprune_env.lm.shapes import SHAPES, WORKING, gpus_for, shape_of

#: What the models' own pages and files say.
PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "llama-7b": 6_738_415_616,
    "llama-2-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "mistral-7b": 7_241_732_096,
}


def test_all_models_that_have_a_name_have_a_shape_of_the_right_size():
    assert set(SHAPES) == {DEFAULT_MODEL, *HUB_MODELS}
    assert {name: shape_of(name).params for name in PUBLISHED} == PUBLISHED
    model, _ = ff.load_model(DEFAULT_MODEL)
    assert shape_of(DEFAULT_MODEL).params == sum(x.numel() for x in model.parameters())
    with pytest.raises(ValueError, match="the shape of model 'gpt-5' is not known here; known are smollm2-135m, opt"):
        shape_of("gpt-5")


@pytest.mark.parametrize("name", ["opt-1.3b", "mistral-7b"])
def test_what_is_multiplied_are_the_matrices_and_factors_are_of_the_output_projections(name):
    shape = shape_of(name)
    common = {
        "vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }  # fmt: skip
    if name.startswith("opt"):
        config = AutoConfig.for_model("opt", ffn_dim=shape.ffn, word_embed_proj_dim=shape.hidden, **common)
    else:
        wide = {"intermediate_size": shape.ffn, "num_key_value_heads": shape.key_heads}
        config = AutoConfig.for_model("mistral", tie_word_embeddings=False, **wide, **common)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.params == sum(x.numel() for x in model.parameters())
    assert shape.multiplied == sum(x.numel() for x in model.parameters() if x.ndim == 2)
    outputs = [x for path, x in model.named_parameters() if path.endswith(("o_proj.weight", "down_proj.weight"))]
    outputs += [x for path, x in model.named_parameters() if path.endswith(("out_proj.weight", "fc2.weight"))]
    assert len(outputs) == 2 * shape.layers
    assert shape.factors == sum(6 * (x.shape[1] ** 2 + x.numel()) for x in outputs)  # float32, and bfloat16 beside it
    assert shape.exact_factors == sum(4 * (x.shape[1] ** 2 + x.numel()) for x in outputs)


def test_time_and_memory_are_what_the_numbers_say():
    shape = shape_of("llama-2-70b")
    assert gpus_for(shape.weights, 80) == 2
    assert gpus_for(0, 80) == gpus_for(78 * 2**30, 80) == 1
    assert gpus_for(78 * 2**30 + 1, 78 + WORKING) == 2
    assert shape.forward_seconds(1000, 400) == pytest.approx(2 * 68.98e9 * 1000 / 4e14, rel=1e-3)
    small = shape_of("smollm2-135m")
    per_token = small.calibration_operations(2) - small.calibration_operations(1)
    assert per_token == 2 * 30 * (576**2 + 1536**2)
