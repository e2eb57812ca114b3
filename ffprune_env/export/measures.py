"""What a budget counts of a model: parameters, bytes of the file that is written, bytes of its cache."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ffprune_env.budget.budget import MeasureName
from ffprune_env.budget.measure import Measure
from ffprune_env.budget.units import PruneUnit
from ffprune_env.export.gguf.kinds import GgufType
from ffprune_env.export.gguf.sizes import gguf_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import PrunableModel
    from ffprune_env.pruning.unit_layout import UnitLayout

_KEY_TABLE = "kv_index"  # the key/value head that each query head reads, int64
_SEPARATE = 3  # input projections of an attention whose heads each have keys of their own: q, k and v


def measure_of(
    prunable: PrunableModel, name: MeasureName, tokenizer: PreTrainedTokenizerBase, gguf: GgufType | None = None
) -> Measure:
    """What a measure counts of a model.

    Args:
        prunable: the model, dense now.
        name: of the measure.
        tokenizer: the model's.
        gguf: ``size`` is of the GGUF file of this type; None: of the weights in the folder that transformers loads.

    Raises:
        ValueError: the model has nothing of it that could go, or it is not known beforehand.
    """
    units = prunable.units
    if name == "prunable":
        return Measure(name, units, sum(unit.n_params for unit in units))
    if name == "parameters":
        return Measure(name, units, prunable.n_params)
    if name == "kv":
        return cache_size(prunable)
    return weights_size(prunable) if gguf is None else gguf_size(prunable, tokenizer, gguf)


def weights_size(prunable: PrunableModel) -> Measure:
    """Bytes of ``model.safetensors``, or of its shards: never less than will be written.

    Args:
        prunable: the model.
    """
    model, entries, at = prunable.model, {}, 0
    stored = {name: (list(x.shape), x.element_size()) for name, x in model.named_parameters()}  # tied ones once
    kept = model.state_dict()
    stored |= {name: (list(x.shape), x.element_size()) for name, x in model.named_buffers() if name in kept}
    for tensor_name, (shape, itemsize) in {**stored, **_key_tables(prunable)}.items():
        size = math.prod(shape) * itemsize
        entries[tensor_name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":"))
    return Measure("size", prunable.units, at + -(-(8 + len(header)) // 8) * 8, model.dtype.itemsize)


def _key_tables(prunable: PrunableModel) -> dict[str, tuple[list[int], int]]:
    """Shape and bytes per number of the tensors that pruning may add, at most.

    Where query heads go one by one, a layer that shares several keys unevenly says which of them each query head reads.
    How many layers do so depends on what goes: the dense model is taken to have all of these tensors.
    """
    names = {module: name for name, module in prunable.model.named_modules()}
    return {
        f"{names[layout.owner]}.{_KEY_TABLE}": ([layout.n_members], torch.int64.itemsize)
        for layout in prunable.layouts
        if layout.key_heads is not None and not layout.balanced and int(layout.key_heads.max()) > 0
    }


def cache_size(prunable: PrunableModel) -> Measure:
    """Bytes that the keys and values of a token take in all layers.

    Args:
        prunable: the model.
    """
    units = tuple(_cached(layout, prunable.model.dtype.itemsize) for layout in prunable.layouts)
    always = 0
    for layer in prunable.whole:
        attention = prunable.model.get_decoder().layers[layer].self_attn
        keys = getattr(attention, "k_proj", None)
        if keys is None:
            raise ValueError(f"--budget kv: what layer {layer} keeps of a token is not known")
        always += 2 * keys.out_features * prunable.model.dtype.itemsize
    return Measure("kv", units, always + sum(unit.costs[-1] for unit in units if unit.costs is not None))


def _cached(layout: UnitLayout, itemsize: int) -> PruneUnit:
    """A unit that costs what its keys and values do; under shared keys all of them until its last head goes."""
    n = layout.unit.n_groups
    if layout.unit.kind == "ffn":
        return replace(layout.unit, costs=(0,) * (n + 1))
    heads = layout.n_members if layout.key_heads is None else int(layout.key_heads.max()) + 1
    cached = 2 * heads * layout.head_dim * itemsize
    if len(layout.inputs) == _SEPARATE:
        return replace(layout.unit, costs=tuple(k * cached // n for k in range(n + 1)))
    return replace(layout.unit, costs=(0, *(cached,) * n))
