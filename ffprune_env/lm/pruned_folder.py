"""A pruned model on disk, read like any other and checked before it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ffprune_env.lm.devices import pick_device
from ffprune_env.lm.generation_settings import make_writable
from ffprune_env.lm.loading_report import load_whole
from ffprune_env.lm.stored_tensors import SAFETENSORS_FILES, read_json, stored_tensors, weight_file
from ffprune_env.modeling.auto_classes import FAMILIES, pruned_model_class
from ffprune_env.modeling.config_names import PREFIX, named_as_pruned

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
        raise OSError(f"{folder} is not a pruned model: it holds no config.json")
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
    found = _stored_shapes(folder, model.config)
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
    return model_class


def _stored_shapes(folder: Path, config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, from the headers of the shards; key indices are read and checked whole."""
    from safetensors import safe_open

    if weight_file(folder) not in [folder / name for name in SAFETENSORS_FILES]:
        raise OSError(f"{folder} is incomplete: {SAFETENSORS_FILES[0]} is missing; copy the folder again")
    stored = stored_tensors(folder)
    for name, tensor in stored.items():
        if name.endswith("kv_index"):
            with safe_open(tensor.file, framework="numpy") as file:
                _check_key_index(tensor.file, name, file.get_tensor(name), config)
    return {name: tensor.shape for name, tensor in stored.items()}


def _check_key_index(file: Path, name: str, index: npt.NDArray[Any], config: Any) -> None:
    heads = config.num_key_value_heads
    shared = config.num_attention_heads // heads
    is_index = index.dtype == np.int64 and index.ndim == 1 and index.size > 0
    if (
        not is_index
        or not 0 <= index.min() <= index.max() < heads
        or (np.diff(index) < 0).any()
        or np.bincount(index).max() > shared
    ):
        raise ValueError(
            f"{file}: {name} must hold int64 key/value heads 0 to {heads - 1} in order, each at most {shared} times; "
            f"got {index.dtype} {index.tolist()}"
        )


def _settings(folder: Path) -> dict[str, Any]:
    return named_as_pruned(read_json(folder / "config.json"))
