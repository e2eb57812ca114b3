"""What the weight files of a checkpoint hold: names, shapes and number formats, without reading the numbers."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: Where transformers looks for weights in a folder, in its order: one file, or an index of shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SAFETENSORS_FILES = WEIGHT_FILES[:2]
#: Key of config.json by which a checkpoint calls its safetensors file, or their index, something else.
_OWN_FILE = "transformers_weights"
_PLAIN_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        shape: its shape.
        dtype: its number format, as the file calls it.
        file: the file that holds it.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers or booleans: a mask, an index, or weights in need of a scale."""
        return self.dtype.lower().startswith(("i", "u", "bool"))

    @property
    def is_plain(self) -> bool:
        """Whether its numbers are floating-point numbers that mean what they are, with no scale beside them."""
        return self.dtype in _PLAIN_FLOATS


def weight_file(folder: Path) -> Path | None:
    """The file or the index that transformers reads weights from; None where there is none of :data:`WEIGHT_FILES`.

    Raises:
        ValueError: config.json is not JSON.
    """
    own = read_json(folder / "config.json").get(_OWN_FILE)
    names = WEIGHT_FILES if own is None else (str(own),)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Reads the headers of all weight files of a folder.

    Args:
        folder: a checkpoint in Hugging Face layout.

    Returns:
        Every tensor under the name it has in the file.

    Raises:
        ValueError: an index lists no shards, a tensor is in two of them, or a file holds something that is no tensor.
        OSError: a file is missing or damaged.
    """
    found: dict[str, StoredTensor] = {}
    for file in _shards(folder):
        if not file.is_file():
            raise OSError(f"{folder} is incomplete: {file.name} is missing; copy the folder again")
        for name, tensor in (_of_safetensors if file.suffix == ".safetensors" else _of_bin)(file).items():
            if name in found:
                raise ValueError(
                    f"{folder}: {found[name].file.name} and {file.name} both hold {name}; keep one of them"
                )
            found[name] = tensor
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: the file is not JSON, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, got {type(content).__name__}")
    return content


def _shards(folder: Path) -> list[Path]:
    file = weight_file(folder) or folder / WEIGHT_FILES[0]
    if file.suffix != ".json":
        return [file]
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{file} has no weight_map: copy the folder again")
    return sorted({folder / str(shard) for shard in weight_map.values()})


def _of_safetensors(file: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: StoredTensor(tuple(x.get_shape()), str(x.get_dtype()), file) for name, x in slices.items()}
    except SafetensorError as error:
        raise OSError(f"{file} is damaged or cut short ({error}); copy the folder again") from error


def _of_bin(file: Path) -> dict[str, StoredTensor]:
    try:
        content = torch.load(file, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:  # its own message proposes to run what the file holds
        raise OSError(
            f"{file} is damaged, or holds Python objects beside its tensors, which are never run; "
            f"save the model as safetensors"
        ) from error
    except Exception as error:  # torch's unpickler fails in its own ways on what is no pickle
        raise OSError(f"{file} is damaged or cut short; copy the folder again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a dict of tensors, got {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{file} must hold tensors only, got {type(tensor).__name__} under {name!r}")
    return {
        name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), file)
        for name, tensor in content.items()
    }
