"""What ffprune-vllm makes of pruned layers, without vLLM: heads of zeros change nothing, the rest is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

PACKAGE = Path(__file__).parents[2] / "ffprune-vllm"
sys.path.insert(0, str(PACKAGE))

from ffprune_vllm.shapes import PADDING, layer_shapes, require_parallel  # noqa: E402
from ffprune_vllm.weights import served_weights  # noqa: E402

WIDTH = 3  # of a head


def config(**changes):
    """Of a grouped model of two layers, the second of which lost query heads."""
    known = {
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "num_attention_heads_per_layer": [6, 3],
        "intermediate_size_per_layer": [8, 5],
        "kv_index_per_layer": [None, [0, 2, 2]],
    }
    return SimpleNamespace(**{**known, **changes})


def test_a_layer_holds_what_is_read_and_as_many_query_heads_for_each():
    whole, cut = layer_shapes(config())
    assert whole.as_stored
    assert (whole.channels, cut.channels) == (8, 5)
    assert cut.key_heads == (0, 2)
    assert cut.query_heads == (0, PADDING, 1, 2)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7).map(sorted))
def test_attention_gives_what_it_gave(index):
    torch.manual_seed(0)
    heads, tokens = len(index), 5
    stored = {
        "layers.0.self_attn.q_proj.weight": torch.randn(heads * WIDTH, 4),
        "layers.0.self_attn.k_proj.weight": torch.randn(4 * WIDTH, 4),
        "layers.0.self_attn.v_proj.weight": torch.randn(4 * WIDTH, 4),
        "layers.0.self_attn.o_proj.weight": torch.randn(4, heads * WIDTH),
        "layers.0.self_attn.q_proj.bias": torch.randn(heads * WIDTH),
        "layers.0.self_attn.o_proj.bias": torch.randn(4),
        "layers.0.self_attn.kv_index": torch.tensor(index),
        "layers.0.mlp.up_proj.weight": torch.randn(2, 4),
    }
    shapes = layer_shapes(
        config(
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=4,
            num_attention_heads_per_layer=[heads],
            intermediate_size_per_layer=[2],
            kv_index_per_layer=[index],
        )
    )
    served = dict(served_weights(stored.items(), shapes))
    assert served.keys() == stored.keys() - {"layers.0.self_attn.kv_index"}
    hidden = torch.randn(tokens, 4)
    keys = len(shapes[0].key_heads)
    shared = [key for key in range(keys) for _ in range(len(shapes[0].query_heads) // keys)]
    torch.testing.assert_close(attention(served, hidden, shared), attention(stored, hidden, index))


def attention(tensors, hidden, index):
    """What a layer's attention gives, with the key/value head that each query head reads."""
    of = {name.removeprefix("layers.0.self_attn."): tensor for name, tensor in tensors.items()}
    q = (hidden @ of["q_proj.weight"].T + of["q_proj.bias"]).unflatten(1, (-1, WIDTH)).transpose(0, 1)
    k, v = (
        (hidden @ of[name].T).unflatten(1, (-1, WIDTH)).transpose(0, 1)[index]
        for name in ("k_proj.weight", "v_proj.weight")
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(0, 1).flatten(1) @ of["o_proj.weight"].T + of["o_proj.bias"]


def test_every_query_head_with_keys_of_its_own_needs_no_index():
    shapes = layer_shapes(config(num_key_value_heads=6, kv_index_per_layer=None))
    assert [len(shape.key_heads) for shape in shapes] == [6, 3]
    assert all(shape.as_stored for shape in shapes)


def test_whole_key_heads_may_have_gone():
    changes = {"num_attention_heads_per_layer": [6, 4], "num_key_value_heads_per_layer": [3, 2]}
    shapes = layer_shapes(config(**changes, kv_index_per_layer=[None, None]))
    assert [(len(shape.query_heads), len(shape.key_heads)) for shape in shapes] == [(6, 3), (4, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_index_per_layer": None}, "lacks kv_index_per_layer"),
        ({"kv_index_per_layer": [None, [0, 1]]}, r"layer 1 must be 3 ascending numbers from 0 to 2, got \[0, 1\]"),
        ({"kv_index_per_layer": [None, [2, 1, 0]]}, "ascending"),
        ({"kv_index_per_layer": [None, [0, 1, 3]]}, "from 0 to 2"),
        ({"num_attention_heads_per_layer": [6]}, r"num_attention_heads_per_layer must list 2 sizes.*got \[6\]"),
        ({"num_attention_heads_per_layer": [5, 3]}, "layer 0 has 5 query heads on 3 key/value heads and no key index"),
    ],
)
def test_a_config_that_does_not_fit_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        layer_shapes(config(**changes))


def test_weights_of_another_model_are_refused():
    shapes = layer_shapes(config())
    with pytest.raises(ValueError, match=r"kv_index is \[0, 1, 2\], but config.json says \(0, 2, 2\)"):
        list(served_weights([("layers.1.self_attn.kv_index", torch.tensor([0, 1, 2]))], shapes))
    with pytest.raises(ValueError, match="which are not 3 heads"):
        list(served_weights([("layers.1.self_attn.q_proj.weight", torch.zeros(10, 4))], shapes))


def test_gpus_that_do_not_divide_a_layer_are_refused():
    shapes = layer_shapes(config(intermediate_size_per_layer=[8, 6]))
    require_parallel(shapes, 1)
    require_parallel(shapes[1:], 2)
    with pytest.raises(ValueError, match=r"tensor_parallel_size 2 does not divide layer 0, .* 6 query heads on 3 key"):
        require_parallel(shapes, 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_attention_heads_per_layer": [6, 0], "kv_index_per_layer": [None, None]}, "layer 1 has no attention"),
        ({"intermediate_size_per_layer": [0, 5]}, "layer 0 has no FFN"),
    ],
)
def test_a_layer_without_a_part_is_refused_in_one_line(changes, says):
    with pytest.raises(ValueError, match=says) as caught:
        layer_shapes(config(**changes))
    assert "\n" not in str(caught.value)
