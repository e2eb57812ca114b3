"""How the FFN of a layer is cut: in blocks of channels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from ffprune_env.budget.units import PruneUnit
from ffprune_env.pruning.block import UnitBlock, path_inside
from ffprune_env.pruning.fused import Fused
from ffprune_env.pruning.unit_layout import UnitLayout, cut_params
from ffprune_env.pruning.unsupported import UnsupportedError, linear_of, owner_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A unit is recognised by the projections that one module owns, not by the name of its class.
_FFN_SHAPES = ((("gate_proj", "up_proj"), "down_proj"), (("fc1",), "fc2"))
# Its rows are two projections, one behind the other.
_FUSED_FFN = "gate_up_proj"
# With fewer groups the rates of an FFN would be too coarse for a search.
_FEWEST_GROUPS = 32
# Who asks for larger groups than these wants them for their size, and knows that the rates are coarse.
_USUAL_CHANNELS, _FEWEST_LARGE_GROUPS = 32, 4


def ffn_layout(model: PreTrainedModel, layer: nn.Module, name: str, index: int) -> UnitLayout:
    """Where the channels of an FFN are, one channel per group; arguments as for an attention.

    Raises:
        UnsupportedError: it cannot be cut.
    """
    if any(type(getattr(module, _FUSED_FFN, None)) is nn.Linear for module in layer.modules()):
        return _fused_ffn_layout(model, layer, name, index)
    for input_names, output_name in _FFN_SHAPES:
        if any(hasattr(module, output_name) for module in layer.modules()):
            where, owner = owner_of(model, layer, name, "ffn", input_names, (output_name,))
            inputs = tuple(linear_of(model, owner, where, attribute) for attribute in input_names)
            output = linear_of(model, owner, where, output_name)
            if {module.out_features for module in inputs} != {output.in_features}:
                raise UnsupportedError(model, f"{where}: the FFN projections disagree about the number of channels")
            # fc1 and fc2 may sit on the layer itself (OPT); the name says which half of the layer is meant.
            path = f"{where}.ffn" if owner is layer else where
            unit = PruneUnit(path, "ffn", index, output.in_features, cut_params(inputs, output))
            places = (*input_names, output_name) if owner is layer else (path_inside(name, where),)
            block = UnitBlock.of(model, layer, name, index, "ffn", places, output)
            return UnitLayout(unit, owner, inputs, output, 1, 1, (1,) * len(inputs), block=block)
    options = " or ".join(" + ".join((*inputs, output)) for inputs, output in _FFN_SHAPES)
    raise UnsupportedError(model, f"{name} has no FFN with {options}")


def _fused_ffn_layout(model: PreTrainedModel, layer: nn.Module, name: str, index: int) -> UnitLayout:
    """An FFN whose gate and up projections are one matrix."""
    where, owner = owner_of(model, layer, name, "ffn", (_FUSED_FFN,), ("down_proj",))
    linear, output = (linear_of(model, owner, where, attribute) for attribute in (_FUSED_FFN, "down_proj"))
    if linear.out_features != 2 * output.in_features:
        raise UnsupportedError(
            model, f"{where}: {_FUSED_FFN} does not hold as many gates and channels as down_proj takes"
        )
    if getattr(getattr(linear, "_hf_hook", None), "offload", False):
        raise UnsupportedError(
            model,
            f"{where}.{_FUSED_FFN} holds two projections in one matrix, which is only cut in memory: load the model "
            f"without --device-map, or give it more --max-memory",
        )
    fused = Fused.of(owner, _FUSED_FFN)
    unit = PruneUnit(where, "ffn", index, output.in_features, cut_params(fused.halves, output))
    block = UnitBlock.of(model, layer, name, index, "ffn", (path_inside(name, where),), output)
    return UnitLayout(unit, owner, fused.halves, output, 1, 1, (1, 1), fused=fused, block=block)


def in_groups(ffn: UnitLayout, channels_per_group: int, head_params: int | None) -> UnitLayout:
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
