"""Turns the tensors of a checkpoint into those of the shape that is served: heads of zeros where one is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch

from ffprune_vllm.shapes import PADDING, LayerShape

_OF_ATTENTION = re.compile(r"layers\.(\d+)\.self_attn\.(q_proj|k_proj|v_proj|o_proj|out_proj|kv_index)(\.|$)")


def served_weights(
    weights: Iterable[tuple[str, torch.Tensor]], shapes: tuple[LayerShape, ...]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a model of these shapes loads, under the names that they have.

    A query head of zeros attends evenly to what it sees, and its output is multiplied by zeros: it changes nothing.

    Args:
        weights: name and tensor of all in the checkpoint.
        shapes: of all layers.

    Yields:
        Name and tensor; the index of the keys is compared with that of config.json, and left out.

    Raises:
        ValueError: a tensor has another shape, or another index of keys, than config.json says.
    """
    for name, tensor in weights:
        found = _OF_ATTENTION.search(name)
        if found is None:
            yield name, tensor
            continue
        shape, part = shapes[int(found[1])], found[2]
        if part == "kv_index":
            if shape.kv_index != tuple(tensor.tolist()):
                raise ValueError(f"{name} is {tensor.tolist()}, but config.json says {shape.kv_index}: one of them is "
                                 "of another model")  # fmt: skip
        elif shape.as_stored:
            yield name, tensor
        elif part in ("k_proj", "v_proj"):
            yield name, _heads(name, tensor, shape.stored_key_heads, shape.key_heads, 0)
        elif part == "q_proj":
            yield name, _heads(name, tensor, shape.stored_query_heads, shape.query_heads, 0)
        elif name.endswith("bias"):  # of the output: as long as the hidden state
            yield name, tensor
        else:
            yield name, _heads(name, tensor, shape.stored_query_heads, shape.query_heads, 1)


def _heads(name: str, tensor: torch.Tensor, stored: int, places: tuple[int, ...], axis: int) -> torch.Tensor:
    """Takes the heads at these places of a tensor that holds ``stored`` heads along an axis."""
    size = tensor.shape[axis]
    if size % stored:
        raise ValueError(f"{name} has {size} numbers along axis {axis}, which are not {stored} heads")
    by_head = tensor.reshape(*tensor.shape[:axis], stored, size // stored, *tensor.shape[axis + 1 :])
    taken = by_head.index_select(axis, torch.tensor([max(place, 0) for place in places], device=tensor.device))
    missing = [i for i, place in enumerate(places) if place == PADDING]
    if missing:
        taken.index_fill_(axis, torch.tensor(missing, device=tensor.device), 0)
    return taken.flatten(axis, axis + 1)
