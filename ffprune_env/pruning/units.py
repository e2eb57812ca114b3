"""Finds the prunable units of a Hugging Face decoder, in ``attention_unit.py`` and ``ffn_unit.py`` by what they own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from ffprune_env.lm.head import decoder_of
from ffprune_env.modeling.absent import absent_blocks, is_absent
from ffprune_env.pruning.attention_unit import ATTENTION_INPUTS, FUSED_ATTENTION, attention_layout
from ffprune_env.pruning.ffn_unit import ffn_layout, in_groups
from ffprune_env.pruning.head_groups import HeadGroups, check_head_groups
from ffprune_env.pruning.unit_layout import UnitLayout
from ffprune_env.pruning.unsupported import UnsupportedError, refuse_shared_weights, shared_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WholeAttentionError(ValueError):
    """An attention cannot be cut exactly: it stays whole, and its parameters are not in w.

    Attributes:
        reasons: why, by decoder layer.
    """

    def __init__(self, message: str, reasons: Mapping[int, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)


@dataclass(frozen=True)
class Parts:
    """What of a decoder can be cut, and what stays whole.

    Attributes:
        layouts: the units in the order attention 0, ffn 0, attention 1, ffn 1, ..., without attention that stays whole,
            and without what went from a model that was pruned before.
        whole: why the attention of a layer cannot be cut exactly, by decoder layer.
    """

    layouts: tuple[UnitLayout, ...]
    whole: dict[int, str]


def find_units(model: PreTrainedModel, heads: HeadGroups = "single") -> tuple[UnitLayout, ...]:
    """The units of a decoder, as far as they show without running it, channel by channel; see :func:`find_parts`."""
    return find_parts(model, heads=heads).layouts


def find_parts(
    model: PreTrainedModel,
    channels_per_group: int = 1,
    heads: HeadGroups = "single",
    whole: Mapping[int, str] | None = None,
) -> Parts:
    """Tells what of a decoder can be cut from what cannot.

    Args:
        model: a Hugging Face causal language model whose layers each hold one FFN with gate, up and down (or fc1 and
            fc2) projections and, if it is to be cut, one attention with q, k and v projections.
        channels_per_group: FFN channels that are removed at once: the largest divisor of this number and of the
            channels that leaves an FFN at least 32 groups, each smaller than a group of heads; more than 32 are only
            held to leave it 4. Where the number of columns is a multiple of 8, 16, 32 or 64 some hardware multiplies
            matrices faster.
        heads: what of a grouped-query attention is removed at once; see
            :data:`~ffprune_env.pruning.head_groups.HeadGroups`.
        whole: layers whose attention is known to be nothing that can be cut, and why.

    Raises:
        ValueError: an FFN cannot be cut; the message says which module was missing. Or ``channels_per_group`` is less
            than 1, ``heads`` is unknown, or query heads were removed before so that they cannot go otherwise than one
            by one.
    """
    check_head_groups(heads)
    if channels_per_group < 1:
        raise ValueError(f"channels_per_group must be at least 1, got {channels_per_group}; 32 is usual")
    reasons = dict(whole or {})
    prefix, layers = find_layers(model)
    shared = shared_weights(model)
    layouts: list[UnitLayout] = []
    for index, layer in enumerate(layers):
        name = f"{prefix}.{index}"
        head_params, gone = None, absent_blocks(layer)
        if index not in reasons and "attention" not in gone:
            try:
                attention = attention_layout(model, layer, name, index, heads)
                refuse_shared_weights(model, attention, shared)
            except UnsupportedError as error:
                reasons[index] = error.reason
            else:
                head_params = attention.unit.group_params
                layouts.append(attention)
        if "ffn" in gone:
            continue
        ffn = ffn_layout(model, layer, name, index)
        refuse_shared_weights(model, ffn, shared)
        layouts.append(in_groups(ffn, channels_per_group, head_params))
    return Parts(tuple(map(_with_rest, layouts)), dict(sorted(reasons.items())))


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The path of the list of layers in the decoder that makes the logits, and the list.

    Raises:
        ValueError: there is none whose layers hold an attention as :func:`find_units` needs it.
    """
    # A model may hold a vision tower or an encoder with layers of the same kind beside its decoder, or before it.
    inside = set(decoder_of(model).modules())
    lists = [(name, x) for name, x in model.named_modules() if isinstance(x, nn.ModuleList) and x in inside]
    marks = (ATTENTION_INPUTS[0], FUSED_ATTENTION)
    attending = [
        (x, y)
        for x, y in lists
        if len(y) and any(is_absent(z) or any(hasattr(z, mark) for mark in marks) for z in y[0].modules())
    ]
    # Lists nested in a layer (experts, for one) come after the list of layers and are left to the layer's own checks.
    tops = [(name, x) for name, x in attending if not any(name.startswith(f"{other}.") for other, _ in attending)]
    if len(tops) == 1:
        return tops[0]
    if tops:
        several = ", ".join(name for name, _ in tops)
        raise UnsupportedError(model, f"its decoder has several lists of layers with attention ({several}), not one")
    found = ", ".join(name for name, _ in lists) or "none"
    raise ValueError(
        f"{type(model).__name__} cannot be pruned: no list of decoder layers whose attention has a q_proj "
        f"(module lists found: {found}); OPT, Llama, Mistral and decoders built the same way can be"
    )


def _with_rest(layout: UnitLayout) -> UnitLayout:
    """A unit that knows what goes with its last group."""
    rest = layout.block.n_params() - layout.unit.n_params
    return replace(layout, unit=replace(layout.unit, rest_params=rest))
