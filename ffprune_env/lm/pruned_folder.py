"""A pruned model on disk, read like any other and checked before it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.lm.devices import pick_device
from ffprune_env.lm.generation_settings import make_writable
from ffprune_env.lm.loading_report import load_whole
from ffprune_env.lm.stored_tensors import SAFETENSORS_FILES, StoredTensor, read_json, stored_tensors, weight_file
from ffprune_env.modeling.auto_classes import pruned_model_class
from ffprune_env.modeling.config_names import KV_INDEX_KEY, PREFIX, named_as_pruned
from ffprune_env.modeling.families import FAMILIES
from ffprune_env.modeling.layer_sizes import layer_sizes, query_heads_per_key_head, why_no_index

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_pruned(folder: str | Path, dtype: str = "auto", device: str = "auto") -> PreTrainedModel:
    """Reads a model that :func:`save_pruned` wrote, without running any code from its folder.

    Args:
        folder: the folder.
        dtype: number format of the weights; ``auto`` is the one they were written in.
        device: where the model lives; ``auto`` is CUDA if there is one, else the CPU.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: the folder is not a pruned model, or its config does not describe its tensors.
        OSError: a file is missing or damaged, or weights are not finite.
    """
    path = Path(folder)
    where = pick_device(device)
    model_class = check_pruned(path)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": where}, "use_safetensors": True}
    try:
        model = load_whole(model_class, path, local_files_only=True, **options)
        make_writable(model)
    except Exception as error:  # a broken folder can raise anything, in as many lines as it likes
        raise OSError(f"{folder} could not be loaded: {' '.join(str(error).split())}") from error
    return model.eval()


def is_pruned(folder: Path) -> bool:
    """Whether a folder holds, or means to hold, a model that :func:`save_pruned` wrote."""
    try:
        return str(_settings(folder).get("model_type")).startswith(PREFIX)
    except (OSError, ValueError):
        return False


def model_inside(folder: Path) -> str:
    """A hint, to end a message by, that a folder is that of a run, which holds a model; else nothing."""
    inside = folder / "model"
    return f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""


def check_pruned(folder: Path) -> Any:
    """Checks that a folder holds a whole pruned model: its config, its shards, and that they agree.

    Args:
        folder: the folder.

    Returns:
        The class of the model.

    Raises:
        ValueError: not a pruned model, or config and tensors disagree; the message names the first that does.
        OSError: a file is missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} is not a pruned model: it holds no config.json{model_inside(folder)}")
    settings = _settings(folder)
    family = str(settings.get("model_type", "nothing")).removeprefix(PREFIX)
    if family not in FAMILIES or family == settings["model_type"]:
        known = ", ".join(PREFIX + name for name in FAMILIES)
        raise ValueError(
            f"{folder} is not a pruned model: its model_type is {settings.get('model_type')!r}, allowed are {known}; "
            f"load a dense model with load_model"
        )
    model_class = pruned_model_class(family)
    try:
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_pretrained(folder))
    except Exception as error:  # a wrong value in a config can raise anything, in as many lines as it likes
        raise ValueError(f"{folder}/config.json describes no model: {' '.join(str(error).split())}") from error
    stored = _stored(folder)
    found = {name: tensor.shape for name, tensor in stored.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        expected = {name: shape for name, shape in expected.items() if name not in model._tied_weights_keys}
        found = {name: shape for name, shape in found.items() if name not in model._tied_weights_keys}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{folder}: config and weights disagree about {name}: the config wants "
                f"{expected.get(name, 'no such tensor')}, the file holds {found.get(name, 'no such tensor')}"
            )
    _check_key_indices(model, stored)
    return model_class


def _stored(folder: Path) -> dict[str, StoredTensor]:
    """What the headers of the shards tell of all tensors."""
    if weight_file(folder) not in [folder / name for name in SAFETENSORS_FILES]:
        raise OSError(f"{folder} is incomplete: {SAFETENSORS_FILES[0]} is missing; copy the folder again")
    return stored_tensors(folder)


def _check_key_indices(model: PreTrainedModel, stored: dict[str, StoredTensor]) -> None:
    """Compares the key/value heads that are read with the config, or, of an older folder, with what can be read."""
    from safetensors import safe_open

    config, names = model.config, {module: name for name, module in model.named_modules()}
    said = getattr(config, KV_INDEX_KEY, None)
    for i, (layer, sizes) in enumerate(zip(model.get_decoder().layers, layer_sizes(config), strict=True)):
        name = f"{names[layer.self_attn]}.kv_index"
        if name not in stored:
            continue
        with safe_open(stored[name].file, framework="pt") as file:
            index = file.get_tensor(name)
        held = index.tolist()
        if said is None:
            wrong = why_no_index(held, sizes.heads, sizes.kv_heads, query_heads_per_key_head(config))
        else:
            wrong = None if held == said[i] else f"is {held}, {KV_INDEX_KEY} in config.json says {said[i]}"
        if index.dtype != torch.int64:
            wrong = f"must be int64; got {index.dtype}"
        if wrong is not None:
            raise ValueError(f"{stored[name].file}: {name} {wrong}; copy the folder again")


def _settings(folder: Path) -> dict[str, Any]:
    return named_as_pruned(read_json(folder / "config.json"))
