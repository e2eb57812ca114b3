"""Finding the units of a model, and refusing what cannot be pruned."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from conftest import LLAMA_LIKE, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ffprune_env.pruning.head_groups import HeadGroups
from ffprune_env.pruning.units import find_parts, find_units


def test_units_come_in_the_order_of_the_design(family):
    units = [layout.unit for layout in find_units(tiny_model(family))]
    assert [unit.kind for unit in units] == ["attention", "ffn"] * 3
    assert [unit.layer for unit in units] == [0, 0, 1, 1, 2, 2]
    assert len({unit.name for unit in units}) == 6
    assert {unit.n_groups for unit in units[::2]} == {4}
    assert {unit.n_groups for unit in units[1::2]} == {24}


@pytest.mark.parametrize(
    ("family", "attention", "ffn"),
    [
        # MHA with biases: q, k, v rows and biases, output columns; fc1 rows and biases, fc2 columns.
        ("opt", 3 * (32 * 32 + 32) + 32 * 32, 24 * 32 + 24 + 24 * 32),
        ("llama", 4 * 32 * 32, 3 * 24 * 32),
        # GQA: keys and values are shared, stay whole and do not count; biases of q, gate and up do.
        ("llama-gqa", 32 * 32 + 32 + 32 * 32, 2 * (24 * 32 + 24) + 24 * 32),
        ("mistral", 2 * 64 * 32, 3 * 24 * 32),
        ("qwen2", 32 * 32 + 32 + 32 * 32, 3 * 24 * 32),
    ],
)
def test_n_params_counts_what_goes_away_with_the_groups(family, attention, ffn):
    units = [layout.unit for layout in find_units(tiny_model(family))]
    assert [unit.n_params for unit in units[:2]] == [attention, ffn]
    assert [unit.group_params for unit in units[:2]] == [attention // 4, ffn // 24]


@pytest.mark.parametrize("heads", get_args(HeadGroups))
def test_group_params_are_what_removing_one_group_removes(family, heads):
    model = tiny_model(family)
    for layout in find_units(model, heads=heads):
        per_group = layout.output.weight[:, : layout.width].numel()
        for module, width in zip(layout.inputs, layout.row_widths, strict=True):
            rows = layout.members(1) * width
            per_group += module.weight[:rows].numel() + (0 if module.bias is None else module.bias[:rows].numel())
        assert layout.unit.group_params == per_group


@pytest.mark.parametrize(
    ("family", "heads", "groups", "params"),
    [
        # Four query heads on two key/value heads: all three projections with biases go, k and v are half as large.
        ("llama-gqa", "balanced", 2, 32 * 32 + 32 + 32 * 32),
        ("llama-gqa", "groups", 2, (32 + 16 + 16) * 32 + 32 + 16 + 16 + 32 * 32),
        ("mistral", "balanced", 2, 2 * 64 * 32),
        ("mistral", "groups", 2, (64 + 32 + 32) * 32 + 64 * 32),
        # One key/value head.
        ("qwen2", "balanced", 4, 32 * 32 + 32 + 32 * 32),
        ("qwen2", "groups", 1, (32 + 8 + 8) * 32 + 32 + 8 + 8 + 32 * 32),
        # As many as query heads.
        ("llama", "balanced", 4, 4 * 32 * 32),
        ("llama", "groups", 4, 4 * 32 * 32),
    ],
)
def test_what_goes_at_once_of_an_attention(family, heads, groups, params):
    unit = find_units(tiny_model(family), heads=heads)[0].unit
    assert (unit.n_groups, unit.n_params) == (groups, params)


def test_unknown_ways_for_heads_to_go_are_refused():
    with pytest.raises(ValueError, match="unknown heads 'pairs'; allowed are single, balanced, groups"):
        find_units(tiny_model("llama"), heads="pairs")


def small(model_type, **settings):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**LLAMA_LIKE, **settings}))


def test_an_architecture_without_separate_projections_is_refused():
    model = small("gpt2", n_embd=32, n_head=4, n_layer=2)
    with pytest.raises(
        ValueError, match=r"GPT2LMHeadModel cannot be pruned: no list of decoder layers.*q_proj.*transformer\.h"
    ):
        find_units(model)


def test_experts_are_refused_by_naming_what_is_missing():
    model = small("mixtral", num_local_experts=2, num_key_value_heads=2)
    with pytest.raises(
        ValueError, match=r"MixtralForCausalLM cannot be pruned: model\.layers\.0 has no ffn module with gate_proj"
    ):
        find_units(model)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("olmo2", {}, r"self_attn\.q_norm\.weight spans the heads"),
        ("cohere", {"use_qk_norm": True}, r"self_attn\.q_norm\.weight spans the heads"),
        ("stablelm", {"qk_layernorm": True, "num_key_value_heads": 4}, "self_attn has modules for single heads"),
    ],
)
def test_an_attention_that_keeps_state_of_its_heads_stays_whole(model_type, changes, reason):
    model = small(model_type, **changes)
    parts = find_parts(model, channels_per_group=2)
    assert [(x.unit.kind, x.unit.layer) for x in parts.layouts] == [("ffn", 0), ("ffn", 1), ("ffn", 2)]
    assert list(parts.whole) == [0, 1, 2]
    assert all(re.search(reason, said) for said in parts.whole.values())
    assert sum(x.unit.n_params for x in parts.layouts) == 3 * 3 * 24 * 32


def test_a_projection_that_is_no_linear_is_refused():
    model = tiny_model("llama")

    class Adapted(nn.Linear):
        pass

    model.model.layers[1].mlp.down_proj = Adapted(24, 32)
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.mlp\.down_proj is a Adapted, a torch\.nn\.Linear is needed"
    ):
        find_units(model)


@pytest.mark.parametrize("names", [["gate_proj"], ["gate_proj", "up_proj", "down_proj"]])
@pytest.mark.parametrize("by_name", [True, False])
def test_layers_that_share_their_weights_are_refused(names, by_name):
    """Of all three the order is free, but cutting the one layer would cut the other, without an error of shapes."""
    model = tiny_model("llama")
    first, second = (model.model.layers[i].mlp for i in (0, 2))
    for name in names:
        weight = getattr(first, name).weight
        getattr(second, name).weight = weight if by_name else nn.Parameter(weight.data)
    shared = r"layers\.0\.mlp\.gate_proj\.weight and model\.layers\.2\.mlp\.gate_proj\.weight are one tensor"
    with pytest.raises(ValueError, match=shared):
        find_units(model)


def test_a_missing_projection_is_named():
    model = tiny_model("opt")
    del model.model.decoder.layers[2].self_attn.v_proj
    parts = find_parts(model)
    assert [x.unit.layer for x in parts.layouts] == [0, 0, 1, 1, 2]
    assert re.search(r"layers\.2 has no attention module with q_proj \+ k_proj \+ v_proj", parts.whole[2])
    del model.model.decoder.layers[1].fc1
    with pytest.raises(
        ValueError, match=r"cannot be pruned: model\.decoder\.layers\.1 has no ffn module with fc1 \+ fc2"
    ):
        find_units(model)


def test_weights_that_attention_of_two_layers_shares_stay_whole():
    model = tiny_model("llama")
    model.model.layers[2].self_attn.q_proj.weight = model.model.layers[0].self_attn.q_proj.weight
    parts = find_parts(model)
    assert [x.unit.kind for x in parts.layouts] == ["ffn", "attention", "ffn", "ffn"]
    assert all("are one tensor" in parts.whole[layer] for layer in (0, 2))


def test_several_lists_of_layers_are_refused():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24}
    model = small("hrm_text", num_layers_per_stack=2, head_dim=8, **sizes)
    with pytest.raises(ValueError, match=r"several lists of layers with attention \(model\.L_module\."):
        find_units(model)
