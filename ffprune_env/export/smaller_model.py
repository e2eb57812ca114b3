"""The pruned model as a module of its own, which computes what the model in memory computes, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import nn

from ffprune_env.export.writable import dense_family
from ffprune_env.lm.context import context_length
from ffprune_env.lm.head import ROUNDING, calm, own_logits, probe_tokens, relative_error
from ffprune_env.modeling.auto_classes import pruned_model_class
from ffprune_env.modeling.config_names import CHANNELS_KEY, HEADS_KEY
from ffprune_env.pruning.units import member_columns

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ffprune_env.pruning.prunable import Calibration, PrunableModel

# Enough for positions to count, and done in seconds whatever the model.
_TOKENS = 32
# A configuration says these of itself; they are those of the class and of the library that write it.
_OF_THE_CLASS = ("model_type", "architectures", "auto_map", "transformers_version")


def smaller_model(
    prunable: PrunableModel, kept: npt.ArrayLike, calibration: Calibration | None = None
) -> PreTrainedModel:
    """Builds the pruned model, on the CPU; what was not pruned may share memory with the one it is made from.

    Heads and channels are in their original order. Every field of the configuration and of the generation
    configuration is as it was, but for the sizes of the layers; embedding and head are tied if they are one tensor
    now, whatever the configuration says of them.

    Args:
        prunable: the ranked model, of a family that can be written, dense now.
        kept: int [N], groups kept per unit.
        calibration: re-fits the output projections.

    Raises:
        ValueError: the model in memory has modules or tensors that its family does not have, parameters of several
            dtypes, or other logits, so that what would be read back is another model.
    """
    model = prunable.model
    _require_one_dtype(model)
    counts = prunable.check_kept(kept)
    sizes = [layout.members(int(k)) for layout, k in zip(prunable.layouts, counts, strict=True)]
    tied = _is_tied(model)
    model_class = pruned_model_class(dense_family(model))
    with torch.device("meta"):
        smaller: PreTrainedModel = model_class(_smaller_config(model, model_class.config_class, sizes, tied))
    _require_same_modules(model, smaller)
    tensors, logits = _smaller_tensors(prunable, counts, sizes, calibration)
    _require_same_names(smaller, tensors, calibration)
    smaller.load_state_dict(tensors, assign=True)
    if tied:
        smaller.tie_weights()
    _compute_constants(smaller)
    _require_same_logits(smaller.eval(), logits)
    if model.generation_config is not None:
        smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller


def _smaller_config(
    model: PreTrainedModel, make: Callable[..., PreTrainedConfig], sizes: list[int], tied: bool
) -> PreTrainedConfig:
    """The configuration of a model, with other sizes of its layers."""
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _OF_THE_CLASS}
    settings |= {HEADS_KEY: sizes[0::2], CHANNELS_KEY: sizes[1::2], "tie_word_embeddings": tied}
    config = make(**copy.deepcopy(settings))
    written = config.to_dict()
    for key, value in settings.items():
        if written.get(key) != value:
            raise ValueError(f"config key {key} would be written as {written.get(key)!r}, but is {value!r}: change it")
    return config


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and head are one tensor: a checkpoint may hold two where its config says there is one."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return embedding is head or (
        embedding.device == head.device
        and embedding.data_ptr() == head.data_ptr()
        and (embedding.shape, embedding.stride()) == (head.shape, head.stride())
    )


@torch.no_grad()
def _smaller_tensors(
    prunable: PrunableModel, counts: npt.NDArray[Any], sizes: list[int], calibration: Calibration | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """All tensors of the pruned model, on the CPU, by name; and its logits of a few tokens."""
    with prunable.pruned(counts, calibration) as pruned:
        tensors = pruned.state_dict()
        names = {module: name for name, module in pruned.named_modules()}
        for layout, order, size in zip(prunable.layouts, prunable.order, sizes, strict=True):
            members, places = order[:size].sort()
            columns = member_columns(layout, places)
            for module in layout.inputs:
                tensors[f"{names[module]}.weight"] = module.weight[columns].cpu()
                if module.bias is not None:
                    tensors[f"{names[module]}.bias"] = module.bias[columns].cpu()
            tensors[f"{names[layout.output]}.weight"] = layout.output.weight[:, columns].cpu()
            if layout.key_heads is not None and size < pruned.config.num_attention_heads:
                tensors[f"{names[layout.owner]}.kv_index"] = layout.key_heads[members].cpu()
        with calm(pruned):
            logits = own_logits(pruned, _tokens(pruned)).cpu()
    return {name: tensor.cpu() for name, tensor in tensors.items()}, logits


def _tokens(model: PreTrainedModel) -> torch.Tensor:
    # Rotations that grow with the window become what they were in one that is shorter than the longest.
    return probe_tokens(model, (1, max(2, min(_TOKENS, context_length(model) - 1))))


def _compute_constants(model: PreTrainedModel) -> None:
    """Gives a model that was built without memory what it does not store: the frequencies of its rotations."""
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            for name, buffer in type(module)(model.config).named_buffers(recurse=False):
                module.register_buffer(name, buffer, persistent=False)


def _require_same_logits(smaller: PreTrainedModel, expected: torch.Tensor) -> None:
    """Refuses a model that does more than modules, weights and config say: a hook, a setting, a config edited late."""
    with calm(smaller):
        off = relative_error(own_logits(smaller, _tokens(smaller)), expected)
    if off > ROUNDING[expected.dtype]:
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
        raise ValueError(f"the model has parameters of {len(found)} dtypes, {examples}: give it one with model.to(...)")


def _require_same_modules(model: nn.Module, smaller: nn.Module) -> None:
    """Refuses a model whose modules are others than those that its configuration describes."""
    found, wanted = _module_classes(model), _module_classes(smaller)
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


def _module_classes(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(module) for name, module in model.named_modules() if name}


def _name(kind: type | None) -> str:
    return "absent" if kind is None else f"a {kind.__module__}.{kind.__qualname__}"
