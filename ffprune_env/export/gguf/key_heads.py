"""Which key/value heads of a layer are written: each of llama.cpp's serves the same number of query heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.export.gguf.layers import written_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class KeyHeads:
    """The key/value heads of all layers, and what they cost.

    Attributes:
        written: for each layer that is written, heads by their place in its projections, with repetitions.
        expanded_layers: layers in which heads are repeated, because their query heads share them unevenly.
        expanded_params: parameters of the repetitions.
        cache_growth: size of the key/value cache as a fraction of that of the model it was written from; folders of
            older versions hold heads that no query reads any more.
    """

    written: Sequence[Sequence[int]]
    expanded_layers: int
    expanded_params: int
    cache_growth: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> KeyHeads:
        """What to write of a model, pruned or dense."""
        layers = written_layers(model)
        width, keys = layers[0].layer.self_attn.head_dim, [x.projections.keys for x in layers]
        stored = [linear.out_features // width for linear in keys]
        written = [_key_heads(x.layer.self_attn, heads) for x, heads in zip(layers, stored, strict=True)]
        repeated = [len(heads) - len(set(heads)) for heads in written]
        costs = [
            2 * more * width * (linear.in_features + int(linear.bias is not None))
            for more, linear in zip(repeated, keys, strict=True)
        ]
        return cls(
            written, sum(more > 0 for more in repeated), sum(costs), sum(map(len, written)) / max(1, sum(stored))
        )


def _key_heads(attention: Any, stored: int) -> list[int]:
    """Key/value heads of a layer to write, by their place among those that it has."""
    index = getattr(attention, "kv_index", None)
    return list(range(stored)) if index is None else expand_keys(index)


def expand_keys(kv_index: torch.Tensor) -> list[int]:
    """The fewest key/value heads, in order and with repetitions, that query heads in order share evenly.

    Args:
        kv_index: int64 [query heads], ascending: the key/value head that each reads.

    Returns:
        Key/value heads to write; with h query heads each of the n serves h / n in a row.
    """
    counts = Counter(kv_index.tolist())
    shared = gcd(*counts.values())
    return [head for head in sorted(counts) for _ in range(counts[head] // shared)]
