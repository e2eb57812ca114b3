"""How much of what a budget counts a model on disk has: bytes, parameters, cache."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from transformers import AutoConfig

from ffprune_env.budget.budget import MeasureName
from ffprune_env.modeling.config_names import KV_HEADS_KEY


def stored_amount(measure: MeasureName, folder: Path, gguf: Path) -> int | None:
    """What a model on disk has of what is counted; None of what is not known from its files.

    Args:
        measure: what is counted.
        folder: that transformers loads.
        gguf: the file for llama.cpp, whose size counts if it is there.
    """
    if measure == "size":
        return sum(file.stat().st_size for file in ([gguf] if gguf.is_file() else folder.glob("*.safetensors")))
    if measure == "parameters":
        return sum(map(stored_numbers, folder.glob("*.safetensors")))
    return stored_cache(folder) if measure == "kv" else None


def stored_numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def stored_cache(folder: Path) -> int:
    """Bytes of keys and values that a pruned model on disk keeps of a token."""
    config = AutoConfig.from_pretrained(folder)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * sum(getattr(config, KV_HEADS_KEY)) * width * config.dtype.itemsize)
