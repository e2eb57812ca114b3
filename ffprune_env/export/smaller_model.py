"""The pruned model as a module of its own, which computes what the model in memory computes, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import nn

from ffprune_env.export.writable import dense_family
from ffprune_env.lm.context import context_length
from ffprune_env.lm.head import own_logits
from ffprune_env.lm.probing import ROUNDING, calm, probe_tokens, usual_error
from ffprune_env.lm.tied import is_tied
from ffprune_env.modeling.absent import absent_blocks
from ffprune_env.modeling.auto_classes import pruned_model_class
from ffprune_env.modeling.config_names import CHANNELS_KEY, HEADS_KEY, KV_HEADS_KEY, KV_INDEX_KEY
from ffprune_env.modeling.layer_sizes import dense_key_heads, shares_evenly
from ffprune_env.pruning.unit_layout import member_columns, spelled_out

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ffprune_env.pruning.prunable import Calibration, PrunableModel
    from ffprune_env.pruning.unit_layout import UnitLayout

# Enough for positions to count, and done in seconds whatever the model.
_WINDOWS, _TOKENS = 3, 32
# A configuration says these of itself; they are those of the class and of the library that write it.
_OF_THE_CLASS = ("model_type", "architectures", "auto_map", "transformers_version")


def smaller_model(
    prunable: PrunableModel, kept: npt.ArrayLike, calibration: Calibration | None = None, checked: bool = True
) -> PreTrainedModel:
    """Builds the pruned model, on the CPU; what was not pruned may share memory with the one it is made from.

    Heads and channels are in their original order. Every field of the configuration and of the generation
    configuration is as it was, but for the sizes of the layers; embedding and head are tied if they are one tensor
    now, whatever the configuration says of them.

    Args:
        prunable: the ranked model, of a family that can be written, dense now.
        kept: int [N], groups kept per unit.
        calibration: re-fits the output projections.
        checked: refuse a model with other logits. A broken one, such as is only timed, may round to others.

    Raises:
        ValueError: the model in memory has modules or tensors that its family does not have, parameters of several
            dtypes, or other logits, so that what would be read back is another model.
    """
    model = prunable.model
    _require_one_dtype(model)
    left = _what_is_left(prunable, prunable.check_kept(kept), calibration)
    tied = is_tied(model)
    model_class = pruned_model_class(dense_family(model))
    config = _smaller_config(model, model_class.config_class, left.sizes | {"tie_word_embeddings": tied})
    with torch.device("meta"):
        smaller: PreTrainedModel = model_class._from_config(config, dtype=model.dtype)
    _require_same_modules(model, smaller, left.gone)
    _require_same_names(smaller, left.tensors, calibration)
    smaller.load_state_dict(left.tensors, assign=True)
    if tied:
        smaller.tie_weights()
    _compute_constants(smaller)
    smaller.eval()
    if checked:
        _require_same_logits(smaller, left.logits)
    if model.generation_config is not None:
        smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller


def _smaller_config(
    model: PreTrainedModel, make: Callable[..., PreTrainedConfig], changes: Mapping[str, Any]
) -> PreTrainedConfig:
    """The configuration of a model, with some of its settings changed."""
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _OF_THE_CLASS}
    settings |= changes
    config = make(**copy.deepcopy(settings))
    written = config.to_dict()
    for key, value in settings.items():
        if written.get(key) != value:
            raise ValueError(f"config key {key} would be written as {written.get(key)!r}, but is {value!r}: change it")
    return config


@dataclass(frozen=True)
class _Left:
    """What is left of a model.

    Attributes:
        tensors: all of them, on the CPU, by name.
        sizes: of its layers, by their keys.
        logits: a few of them.
        gone: modules that went with their last group, by name.
    """

    tensors: dict[str, torch.Tensor]
    sizes: dict[str, list[Any]]
    logits: torch.Tensor
    gone: frozenset[str]


@torch.no_grad()
def _what_is_left(prunable: PrunableModel, counts: npt.NDArray[Any], calibration: Calibration | None) -> _Left:
    with prunable.pruned(counts, calibration) as pruned:
        tensors = pruned.state_dict()
        names = {module: name for name, module in pruned.named_modules()}
        config = pruned.config
        layers = pruned.get_decoder().layers
        sizes: dict[str, list[Any]] = {
            HEADS_KEY: [_heads(layer, "q_proj", config.num_attention_heads) for layer in layers],
            KV_HEADS_KEY: [_heads(layer, "k_proj", dense_key_heads(config)) for layer in layers],
            CHANNELS_KEY: [_channels(layer) for layer in layers],
            KV_INDEX_KEY: [None] * len(layers),
        }
        gone: list[str] = []
        for layout, order, k in zip(prunable.layouts, prunable.order, counts, strict=True):
            if not k:
                gone += [f"{layout.block.name}.{path}" for path in layout.block.gone]
                continue
            members, places = order[: layout.members(int(k))].sort()
            columns = member_columns(layout, places)
            for module, width in zip(layout.inputs, layout.row_widths, strict=True):
                rows = spelled_out(places, width)
                tensors[f"{names[module]}.weight"] = module.weight[rows].cpu()
                if module.bias is not None:
                    tensors[f"{names[module]}.bias"] = module.bias[rows].cpu()
            tensors[f"{names[layout.output]}.weight"] = layout.output.weight[:, columns].cpu()
            if layout.fused is not None:
                _join(tensors, f"{names[layout.owner]}.{layout.fused.name}")
            if layout.key_heads is None:
                continue
            layer, index = layout.unit.layer, _only_read_keys(tensors, names, layout, members)
            sizes[KV_HEADS_KEY][layer] = len(layout.read_keys(members))
            tensors.pop(f"{names[layout.owner]}.kv_index", None)  # of a model that was pruned before
            if not shares_evenly(index.tolist(), sizes[KV_HEADS_KEY][layer]):
                tensors[f"{names[layout.owner]}.kv_index"] = index
                sizes[KV_INDEX_KEY][layer] = index.tolist()
        with calm(pruned):
            logits = own_logits(pruned, _tokens(pruned)).cpu()
    return _Left({name: tensor.cpu() for name, tensor in tensors.items()}, sizes, logits, frozenset(gone))


def _only_read_keys(
    tensors: dict[str, torch.Tensor], names: Mapping[nn.Module, str], layout: UnitLayout, members: torch.Tensor
) -> torch.Tensor:
    """Takes keys and values that no query head reads any more out of tensors.

    Args:
        tensors: by name; changed.
        names: of modules.
        layout: of an attention whose query heads share keys.
        members: int64 [query heads], those that stay.

    Returns:
        int64 [query heads] on the CPU, the key/value head that each reads, among those that are left.
    """
    read = layout.read_keys(members)
    rows, reads = spelled_out(read, layout.head_dim), layout.reads(members)
    for linear in layout.keys_and_values:
        for kind, parameter in linear.named_parameters():
            tensors[f"{names[linear]}.{kind}"] = parameter.detach()[rows]
    return torch.searchsorted(read, reads).cpu()


def _heads(layer: Any, projection: str, dense: int) -> int:
    """Heads that a projection of an attention gives; one that is a part of a larger matrix is never cut."""
    if "attention" in absent_blocks(layer):
        return 0
    linear = getattr(layer.self_attn, projection, None)
    return dense if linear is None else linear.out_features // layer.self_attn.head_dim


def _join(tensors: dict[str, torch.Tensor], name: str) -> None:
    """Makes one matrix again of the gate and the up projection that were cut as two."""
    for kind in ("weight", "bias"):
        if f"{name}.gate.{kind}" in tensors:
            halves = [tensors.pop(f"{name}.{half}.{kind}").cpu() for half in ("gate", "up")]
            tensors[f"{name}.{kind}"] = torch.cat(halves)


def _channels(layer: nn.Module) -> int:
    if "ffn" in absent_blocks(layer):
        return 0
    ffn: Any = getattr(layer, "mlp", layer)
    channels: int = (ffn.fc2 if hasattr(ffn, "fc2") else ffn.down_proj).in_features
    return channels


def _tokens(model: PreTrainedModel) -> torch.Tensor:
    # Rotations that grow with the window become what they were in one that is shorter than the longest.
    return probe_tokens(model, (_WINDOWS, max(2, min(_TOKENS, context_length(model) - 1))))


@torch.no_grad()
def _compute_constants(model: PreTrainedModel) -> None:
    """Gives a model that was built without memory what it does not store, such as the frequencies of its rotations.

    They are computed as they will be when the model is read back, so that a model in which they were changed shows.
    """
    for module in model.modules():
        constants = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        if not constants:
            continue
        for name, buffer in constants.items():
            module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
        stored = list(module.parameters(recurse=False))
        for parameter in stored:  # the mark by which transformers knows what it must not initialize
            parameter._is_hf_initialized = True
        model._init_weights(module)
        for parameter in stored:
            del parameter._is_hf_initialized


def _require_same_logits(smaller: PreTrainedModel, expected: torch.Tensor) -> None:
    """Refuses a model that does more than modules, weights and config say: a hook, a setting, a config edited late."""
    with calm(smaller):
        off = usual_error(own_logits(smaller, _tokens(smaller)), expected)
    if not off <= ROUNDING[expected.dtype]:
        raise ValueError(
            f"what would be written is not the model in memory, its logits are off by {off:.2g} of their size: a hook, "
            f"a setting of a module or the config was changed after the model was built; save it dense and load it "
            f"again first"
        )


def _require_one_dtype(model: nn.Module) -> None:
    """A folder is read in one dtype, so that what is finer than the rest would be rounded."""
    found = {parameter.dtype: name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if len(found) > 1:
        examples = ", ".join(f"{str(dtype).removeprefix('torch.')} ({name})" for dtype, name in found.items())
        raise ValueError(
            f"the model has parameters of {len(found)} dtypes, {examples}: give all of them one, by parameter.data = "
            f"parameter.data.to(...); model.to(...) would round buffers as well"
        )


def _require_same_modules(model: nn.Module, smaller: nn.Module, gone: Collection[str]) -> None:
    """Refuses a model whose modules are others than those that its configuration describes; ``gone`` are no more."""
    found, wanted = _module_classes(model, gone), _module_classes(smaller, gone)
    for name in (*found, *wanted):
        if found.get(name) is not wanted.get(name):
            raise ValueError(
                f"{name} is {_name(found.get(name))}, where a pruned model has {_name(wanted.get(name))}: what was "
                f"changed in memory cannot be written"
            )


def _require_same_names(
    smaller: PreTrainedModel, tensors: Mapping[str, torch.Tensor], calibration: Calibration | None
) -> None:
    """Refuses tensors that the smaller model has no place for, such as biases that a calibration made."""
    wanted = smaller.state_dict()
    wrong = sorted(tensors.keys() ^ wanted.keys())
    wrong += [name for name, x in tensors.items() if name in wanted and x.shape != wanted[name].shape]
    if wrong:
        by = "" if calibration is None else f" calibrated by {type(calibration).__name__}"
        raise ValueError(
            f"a pruned {dense_family(smaller)}{by} cannot be written: its config has no place for {len(wrong)} of its "
            f"tensors, or wants others, such as {wrong[0]}"
        )


def _module_classes(model: nn.Module, but: Collection[str]) -> dict[str, type[nn.Module]]:
    """Classes of all modules by name, but for some and what is in them."""
    inside = tuple(f"{name}." for name in but)
    return {name: type(x) for name, x in model.named_modules() if name and not f"{name}.".startswith(inside)}


def _name(kind: type | None) -> str:
    return "absent" if kind is None else f"a {kind.__module__}.{kind.__qualname__}"
