"""Finds the prunable units of a Hugging Face decoder: the one place that knows how families are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.budget.units import PruneUnit, UnitKind
from ffprune_env.lm.devices import running_device
from ffprune_env.lm.head import decoder_of
from ffprune_env.modeling.absent import absent_blocks, is_absent
from ffprune_env.modeling.config_names import KV_HEADS_KEY
from ffprune_env.modeling.layer_sizes import query_heads_per_key_head
from ffprune_env.pruning.block import UnitBlock
from ffprune_env.pruning.fused import Fused
from ffprune_env.pruning.head_groups import HeadGroups, check_head_groups, heads_at_once
from ffprune_env.pruning.unit_layout import UnitLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# A unit is recognised by the projections that one module owns, not by the name of its class.
_ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
_ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense")
# Of these the rows are several projections, one behind the other.
_FUSED_ATTENTION, _FUSED_FFN = "qkv_proj", "gate_up_proj"
_FFN_SHAPES = ((("gate_proj", "up_proj"), "down_proj"), (("fc1",), "fc2"))
# With fewer groups the rates of an FFN would be too coarse for a search.
_FEWEST_GROUPS = 32
# Who asks for larger groups than these wants them for their size, and knows that the rates are coarse.
_USUAL_CHANNELS, _FEWEST_LARGE_GROUPS = 32, 4


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


def find_units(
    model: PreTrainedModel, channels_per_group: int = 1, heads: HeadGroups = "single"
) -> tuple[UnitLayout, ...]:
    """The units of a decoder, as far as they show without running it; see :func:`find_parts`."""
    return find_parts(model, channels_per_group, heads).layouts


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
    shared = _shared_weights(model)
    layouts: list[UnitLayout] = []
    for index, layer in enumerate(layers):
        name = f"{prefix}.{index}"
        head_params, gone = None, absent_blocks(layer)
        if index not in reasons and "attention" not in gone:
            try:
                attention = _attention_layout(model, layer, name, index, heads)
                _refuse_shared_weights(model, attention, shared)
            except _UnsupportedError as error:
                reasons[index] = error.reason
            else:
                head_params = attention.unit.group_params
                layouts.append(attention)
        if "ffn" in gone:
            continue
        ffn = _ffn_layout(model, layer, name, index)
        _refuse_shared_weights(model, ffn, shared)
        layouts.append(_in_blocks(ffn, channels_per_group, head_params))
    return Parts(tuple(map(_with_rest, layouts)), dict(sorted(reasons.items())))


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The path of the list of layers in the decoder that makes the logits, and the list.

    Raises:
        ValueError: there is none whose layers hold an attention as :func:`find_units` needs it.
    """
    # A model may hold a vision tower or an encoder with layers of the same kind beside its decoder, or before it.
    inside = set(decoder_of(model).modules())
    lists = [(name, x) for name, x in model.named_modules() if isinstance(x, nn.ModuleList) and x in inside]
    marks = (_ATTENTION_INPUTS[0], _FUSED_ATTENTION)
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
        raise _unsupported(model, f"its decoder has several lists of layers with attention ({several}), not one")
    found = ", ".join(name for name, _ in lists) or "none"
    raise ValueError(
        f"{type(model).__name__} cannot be pruned: no list of decoder layers whose attention has a q_proj "
        f"(module lists found: {found}); OPT, Llama, Mistral and decoders built the same way can be"
    )


def _attention_layout(
    model: PreTrainedModel, layer: nn.Module, name: str, index: int, grouping: HeadGroups
) -> UnitLayout:
    for path, module in layer.named_modules():
        if hasattr(module, _FUSED_ATTENTION):
            raise _unsupported(model, f"{name}.{path}.{_FUSED_ATTENTION} holds queries, keys and values in one matrix")
    where, owner = _owner(model, layer, name, "attention", _ATTENTION_INPUTS, _ATTENTION_OUTPUTS)
    q, k, v = (_linear(model, owner, where, attribute) for attribute in _ATTENTION_INPUTS)
    output = _linear(model, owner, where, next(o for o in _ATTENTION_OUTPUTS if hasattr(owner, o)))
    head_dim = getattr(owner, "head_dim", None) or q.out_features // model.config.get_text_config().num_attention_heads
    heads, key_heads = q.out_features // head_dim, k.out_features // head_dim
    if not q.out_features == output.in_features == heads * head_dim:
        raise _unsupported(
            model,
            f"{where}: the query projection gives {q.out_features} features, "
            f"its output projection takes {output.in_features}, with heads of {head_dim}",
        )
    shared = getattr(owner, "kv_index", None)  # of an attention that lost query heads already
    if v.out_features != k.out_features or (shared is None and heads % key_heads):
        shapes = f"{heads} query heads, {key_heads} key heads, {v.out_features} value features"
        raise _unsupported(model, f"{where} has {shapes}, which do not share evenly")
    _refuse_state_of_heads(model, owner, where, head_dim)
    block = _block(model, layer, name, index, "attention", (_inside(name, where),), output)
    if grouping == "groups" and shared is None:
        unit = PruneUnit(where, "attention", index, key_heads, _cut_params((q, k, v), output))
        return _key_value_groups(unit, owner, (q, k, v), output, head_dim, block)
    if shared is None and (key_heads != heads or _shared_before(model.config)):
        shared = torch.arange(heads, device=running_device(output)) // (heads // key_heads)
    at_once = heads_at_once(shared, grouping)
    if at_once is None:
        raise ValueError(
            f"{where} has lost query heads one by one before, and cannot lose them by heads={grouping!r}: give 'single'"
        )
    inputs = (q, k, v) if shared is None else (q,)
    unit = PruneUnit(where, "attention", index, heads // at_once, _cut_params(inputs, output))
    widths = (head_dim,) * len(inputs)
    width = at_once * head_dim
    return UnitLayout(unit, owner, inputs, output, width, head_dim, widths, shared, at_once > 1, block=block)


def _key_value_groups(
    unit: PruneUnit,
    owner: nn.Module,
    inputs: tuple[nn.Linear, ...],
    output: nn.Linear,
    head_dim: int,
    block: UnitBlock,
) -> UnitLayout:
    """An attention that loses key/value heads with all that read them; stock code shares what is left."""
    width = output.in_features // unit.n_groups
    return UnitLayout(unit, owner, inputs, output, width, width, (width, head_dim, head_dim), block=block)


def _block(
    model: PreTrainedModel,
    layer: nn.Module,
    name: str,
    index: int,
    kind: UnitKind,
    places: tuple[str, ...],
    output: nn.Linear,
) -> UnitBlock:
    return UnitBlock(kind, layer, name, index, places, output.out_features, model.config.get_text_config())


def _inside(layer: str, path: str) -> str:
    """The path of a module inside its layer."""
    return path.removeprefix(layer).removeprefix(".")


def _with_rest(layout: UnitLayout) -> UnitLayout:
    """A unit that knows what goes with its last group."""
    rest = layout.block.n_params() - layout.unit.n_params
    return replace(layout, unit=replace(layout.unit, rest_params=rest))


def _shared_before(config: Any) -> bool:
    """Whether keys are shared in a pruned model, where a layer may have one query head left for every key head."""
    return hasattr(config, KV_HEADS_KEY) and query_heads_per_key_head(config) > 1


def _refuse_state_of_heads(model: PreTrainedModel, attention: nn.Module, where: str, head_dim: int) -> None:
    """Finds an attention that keeps more about its heads than the four projections.

    A norm over one head's features serves every head alike and may stay; sinks, norms over all heads and norms of
    single heads would have to be cut and reordered with them.
    """
    for name, parameter in attention.named_parameters():
        if name.split(".")[0] not in (*_ATTENTION_INPUTS, *_ATTENTION_OUTPUTS) and parameter.shape != (head_dim,):
            raise _unsupported(model, f"{where}.{name} spans the heads and cannot be cut with them")
    if any(isinstance(module, nn.ModuleList) for module in attention.modules()):
        raise _unsupported(model, f"{where} has modules for single heads, which cannot be cut with them")


def _shared_weights(model: PreTrainedModel) -> dict[object, tuple[str, str]]:
    """The weights that two modules share, by their place in memory, with two names of each."""
    first: dict[object, str] = {}
    shared: dict[object, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(_place(parameter), name)
        if other != name:
            shared.setdefault(_place(parameter), (other, name))
    return shared


def _refuse_shared_weights(
    model: PreTrainedModel, layout: UnitLayout, shared: Mapping[object, tuple[str, str]]
) -> None:
    """Refuses weights that two modules share: each unit has an order and a number of groups of its own."""
    for module in (*layout.inputs, layout.output):
        for parameter in module.parameters(recurse=False):
            if _place(parameter) in shared:
                names = " and ".join(shared[_place(parameter)])
                raise _unsupported(model, f"{names} are one tensor, which cannot be cut for each by itself")


def _place(tensor: torch.Tensor) -> object:
    """What two tensors have in common that start at the same place in memory; those without memory are themselves."""
    return id(tensor) if tensor.is_meta or not tensor.numel() else (tensor.device, tensor.data_ptr())


def _ffn_layout(model: PreTrainedModel, layer: nn.Module, name: str, index: int) -> UnitLayout:
    if any(type(getattr(module, _FUSED_FFN, None)) is nn.Linear for module in layer.modules()):
        return _fused_ffn_layout(model, layer, name, index)
    for input_names, output_name in _FFN_SHAPES:
        if any(hasattr(module, output_name) for module in layer.modules()):
            where, owner = _owner(model, layer, name, "ffn", input_names, (output_name,))
            inputs = tuple(_linear(model, owner, where, attribute) for attribute in input_names)
            output = _linear(model, owner, where, output_name)
            if {module.out_features for module in inputs} != {output.in_features}:
                raise _unsupported(model, f"{where}: the FFN projections disagree about the number of channels")
            # fc1 and fc2 may sit on the layer itself (OPT); the name says which half of the layer is meant.
            path = f"{where}.ffn" if owner is layer else where
            unit = PruneUnit(path, "ffn", index, output.in_features, _cut_params(inputs, output))
            places = (*input_names, output_name) if owner is layer else (_inside(name, where),)
            block = _block(model, layer, name, index, "ffn", places, output)
            return UnitLayout(unit, owner, inputs, output, 1, 1, (1,) * len(inputs), block=block)
    options = " or ".join(" + ".join((*inputs, output)) for inputs, output in _FFN_SHAPES)
    raise _unsupported(model, f"{name} has no FFN with {options}")


def _fused_ffn_layout(model: PreTrainedModel, layer: nn.Module, name: str, index: int) -> UnitLayout:
    """An FFN whose gate and up projections are one matrix."""
    where, owner = _owner(model, layer, name, "ffn", (_FUSED_FFN,), ("down_proj",))
    linear, output = (_linear(model, owner, where, attribute) for attribute in (_FUSED_FFN, "down_proj"))
    if linear.out_features != 2 * output.in_features:
        raise _unsupported(model, f"{where}: {_FUSED_FFN} does not hold as many gates and channels as down_proj takes")
    if getattr(getattr(linear, "_hf_hook", None), "offload", False):
        raise _unsupported(
            model,
            f"{where}.{_FUSED_FFN} holds two projections in one matrix, which is only cut in memory: load the model "
            f"without --device-map, or give it more --max-memory",
        )
    fused = Fused.of(owner, _FUSED_FFN)
    unit = PruneUnit(where, "ffn", index, output.in_features, _cut_params(fused.halves, output))
    block = _block(model, layer, name, index, "ffn", (_inside(name, where),), output)
    return UnitLayout(unit, owner, fused.halves, output, 1, 1, (1, 1), fused=fused, block=block)


def _in_blocks(ffn: UnitLayout, channels_per_group: int, head_params: int | None) -> UnitLayout:
    """The FFN with so many channels per group, fewer where groups would be too few or as large as one of heads."""
    n, size = ffn.unit.n_groups, ffn.unit.group_params
    large = channels_per_group > _USUAL_CHANNELS
    most = min(channels_per_group, n // (_FEWEST_LARGE_GROUPS if large else _FEWEST_GROUPS))
    if head_params is not None and not large:
        # The coarser groups are rounded first when a budget is met, and the finer ones make up for it: that serves an
        # allocation best where there are more of these (docs/design.md, 4.1).
        most = min(most, (head_params - 1) // size)
    width = max((d for d in range(1, most + 1) if n % d == 0 and channels_per_group % d == 0), default=1)
    return replace(ffn, unit=replace(ffn.unit, n_groups=n // width), width=width)


def _owner(
    model: nn.Module, layer: nn.Module, name: str, kind: UnitKind, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[str, nn.Module]:
    """Finds the one module inside a layer that owns the given projections."""
    owners = [
        (f"{name}.{path}" if path else name, module)
        for path, module in layer.named_modules()
        if all(hasattr(module, child) for child in inputs) and any(hasattr(module, child) for child in outputs)
    ]
    wanted = " + ".join((*inputs, " or ".join(outputs)))
    if not owners:
        raise _unsupported(model, f"{name} has no {kind} module with {wanted}")
    if len(owners) > 1:
        paths = ", ".join(path for path, _ in owners)
        raise _unsupported(model, f"{name} has {len(owners)} {kind} modules ({paths}), one expected")
    return owners[0]


def _linear(model: nn.Module, owner: nn.Module, where: str, attribute: str) -> nn.Linear:
    module = getattr(owner, attribute)
    # A subclass (a quantized or adapted layer) may keep state beside weight and bias that slicing would miss.
    if type(module) is not nn.Linear:
        raise _unsupported(model, f"{where}.{attribute} is a {type(module).__name__}, a torch.nn.Linear is needed")
    return module


def _cut_params(inputs: tuple[nn.Linear, ...], output: nn.Linear) -> int:
    """Counts w_i: all of the input projections with biases, and the output weight without its bias."""
    rows = sum(module.weight.numel() + (0 if module.bias is None else module.bias.numel()) for module in inputs)
    return rows + output.weight.numel()


class _UnsupportedError(ValueError):
    """A part of a model cannot be cut."""

    def __init__(self, model: nn.Module, reason: str) -> None:
        super().__init__(f"{type(model).__name__} cannot be pruned: {reason}")
        self.reason = reason


def _unsupported(model: nn.Module, reason: str) -> ValueError:
    return _UnsupportedError(model, reason)
