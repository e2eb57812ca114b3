"""A real, smaller checkpoint: written whole or not at all, checked when it is read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ffprune_env.export.model_card import CardFacts, model_card
from ffprune_env.export.smaller_model import smaller_model
from ffprune_env.export.writable import why_not_saved
from ffprune_env.lm.devices import pick_device, require_resident
from ffprune_env.lm.generation_settings import make_writable
from ffprune_env.lm.loading_report import load_whole
from ffprune_env.lm.quiet import quiet_transformers
from ffprune_env.lm.stored_tensors import SAFETENSORS_FILES, read_json, stored_tensors, weight_file
from ffprune_env.modeling.auto_classes import FAMILIES, pruned_model_class
from ffprune_env.modeling.config_names import PREFIX, named_as_pruned

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import Calibration, PrunableModel

_SHARD = "5GB"


def save_pruned(
    prunable: PrunableModel,
    kept: npt.ArrayLike,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calibration: Calibration | None = None,
    facts: CardFacts | None = None,
) -> None:
    """Writes the pruned model as a folder in Hugging Face layout, with smaller tensors.

    Heads and channels are written in their original order. The folder holds weights (safetensors, shards of 5 GB), a
    config with the sizes of every layer, the modelling code that ``trust_remote_code=True`` runs where ffprune_env is
    not installed, the tokenizer, and a model card. It appears under its name when all of it is written.

    Args:
        prunable: the ranked model, dense now.
        kept: int [N], groups kept per unit.
        folder: where to; must not exist, or be empty.
        tokenizer: the model's, to be written beside it.
        calibration: re-fits the output projections; biases that it makes need a place in the family's configuration.
        facts: what the model card tells about where the model comes from and how well it does.

    Raises:
        ValueError: the model cannot be written so that the same one is read back (see
            :func:`~ffprune_env.export.smaller_model.smaller_model`), or the folder holds something.
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    reason = why_not_saved(prunable.model)
    if reason is not None:
        raise ValueError(reason)
    require_resident(prunable.model, "writing a pruned model")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already: give the pruned model a new folder")
    pruned = smaller_model(prunable, kept, calibration)
    with _all_or_nothing(target) as scratch, quiet_transformers():
        pruned.save_pretrained(scratch, max_shard_size=_SHARD)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        card = model_card(prunable, kept, calibration, facts or CardFacts())
        (scratch / "README.md").write_text(card, encoding="utf-8")


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


@contextmanager
def _all_or_nothing(target: Path) -> Iterator[Path]:
    """A scratch folder beside the target, which takes its name if all goes well and is removed if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".writing-{target.name}-", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp's are for their owner alone
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
