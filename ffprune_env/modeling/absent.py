"""A decoder layer without its attention or its FFN: what stands in their places, and gives nothing.

This file is written into the folder of every pruned model, so it needs nothing but torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

Block = Literal["attention", "ffn"]


class NoAttention(nn.Module):
    """Stands where an attention stood, and gives 0 to the hidden state.

    It computes no keys and keeps none. Transformers asks the first layer of each kind how many tokens a cache holds:
    there it marks them, with one number each.

    Args:
        head_dim: features of a head of the attention that stood here, where it said that.
        layer_idx: number of the decoder layer.
        marks: whether it marks tokens in the cache.
    """

    absent: ClassVar[Block] = "attention"

    def __init__(self, head_dim: int | None, layer_idx: int, marks: bool) -> None:
        super().__init__()
        self.head_dim, self.layer_idx, self.marks = head_dim, layer_idx, marks

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """[B, T, C] to zeros of the same shape, which take no memory; no attention weights."""
        if self.marks and past_key_values is not None:
            mark = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            past_key_values.update(mark, mark, self.layer_idx)
        return hidden_states.new_zeros(()).expand_as(hidden_states), None


class Nothing(nn.Module):
    """Stands where an FFN, or a projection of one, stood.

    Args:
        width: features that it gives, all 0.
    """

    absent: ClassVar[Block] = "ffn"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., C] to zeros, [..., width], which take no memory."""
        return hidden_states.new_zeros(()).expand(*hidden_states.shape[:-1], self.width)


def is_absent(module: Any) -> bool:
    """Whether a module stands in the place of what is gone; code in the folder of a model has classes of its own."""
    return hasattr(module, "absent")


def absent_blocks(layer: nn.Module) -> set[Block]:
    """What a decoder layer lacks."""
    found: set[Any] = {module.absent for module in layer.modules() if is_absent(module)}
    return found


def norms_of(layer: nn.Module, kind: Block) -> tuple[list[str], list[str]]:
    """Norms that serve one block of a decoder layer and nothing else, by their names.

    Args:
        layer: the layer.
        kind: of the block.

    Returns:
        Those before the block, and those behind it. A norm that two blocks share, and one of the hidden state itself,
        is neither.
    """

    def there(*names: str) -> list[str]:
        return [name for name in names if isinstance(getattr(layer, name, None), nn.Module)]

    if there("self_attn_layer_norm"):  # OPT, which may have its norms behind the sum
        own = there("self_attn_layer_norm" if kind == "attention" else "final_layer_norm")
        return (own if getattr(layer, "do_layer_norm_before", False) else []), []
    around = there("pre_feedforward_layernorm", "post_feedforward_layernorm")
    if kind == "ffn":
        if around:
            return there("pre_feedforward_layernorm"), there("post_feedforward_layernorm")
        return there("post_attention_layernorm"), []
    shared = not around and not there("post_attention_layernorm")  # attention beside the FFN
    return ([] if shared else there("input_layernorm")), (there("post_attention_layernorm") if around else [])


def marks_tokens(config: Any, layer: int) -> bool:
    """Whether a cache is asked about this layer for all of its kind: whether it is the first.

    Args:
        config: of the model.
        layer: its number.
    """
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    return kinds.index(kinds[layer]) == layer if layer < len(kinds) else layer == 0


def put(layer: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Puts modules where others are.

    Args:
        layer: a decoder layer.
        modules: by their path inside it.

    Returns:
        What was there.
    """
    before = {}
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        places: Any = layer.get_submodule(parent)._modules
        before[path], places[name] = places[name], module
    return before


def stand_ins(
    layer: nn.Module, kind: Block, places: Sequence[str], config: Any, number: int, width: int
) -> dict[str, nn.Module]:
    """What stands where the modules of a block stood, its norms among them, by their path inside the layer.

    Args:
        layer: a decoder layer.
        kind: of the block.
        places: where its modules are: of an attention one, of an FFN one, or its projections, the last of which gives
            what the FFN gives.
        config: of the model.
        number: of the layer.
        width: features of the hidden state.
    """
    modules: dict[str, nn.Module] = {name: nn.Identity() for names in norms_of(layer, kind) for name in names}
    if kind == "attention":
        head_dim: Any = getattr(layer.get_submodule(places[0]), "head_dim", None)
        return modules | {places[0]: NoAttention(head_dim, number, marks_tokens(config, number))}
    return modules | {path: Nothing(width if path == places[-1] else 0) for path in places}
