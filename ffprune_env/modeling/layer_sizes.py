"""How large a pruned layer is and which key/value head each query head reads, as config.json says it.

This file is written into the folder of every pruned model, so it needs nothing at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config_names import CHANNELS_KEY, HEADS_KEY, KV_HEADS_KEY, KV_INDEX_KEY


@dataclass(frozen=True)
class LayerSizes:
    """What is left of one decoder layer.

    Attributes:
        heads: query heads; 0 where there is no attention.
        kv_heads: key/value heads; 0 there as well, and nowhere else.
        channels: of the FFN; 0 where there is none.
        kv_index: the key/value head that each query head reads; None where they share them evenly and in order.
    """

    heads: int
    kv_heads: int
    channels: int
    kv_index: tuple[int, ...] | None = None


def layer_sizes(config: Any) -> list[LayerSizes]:
    """The sizes of all layers of a pruned model.

    Args:
        config: its configuration. Where one of an older version does not hold the index, it is all zeros here: the
            weights hold it.

    Raises:
        ValueError: the configuration contradicts itself; the message names the key.
    """
    dense, dense_kv = config.num_attention_heads, dense_key_heads(config)
    heads, channels = _integers(config, HEADS_KEY), _integers(config, CHANNELS_KEY)
    if hasattr(config, KV_HEADS_KEY):
        kv_heads = _integers(config, KV_HEADS_KEY)
    else:
        kv_heads = heads if dense_kv == dense else [dense_kv if n else 0 for n in heads]
    for i, pair in enumerate(zip(heads, kv_heads, strict=True)):
        if 0 in pair and any(pair):
            raise ValueError(
                f"config keys {HEADS_KEY} and {KV_HEADS_KEY} give layer {i} {pair[0]} query heads and {pair[1]} "
                f"key/value heads; without an attention both are 0"
            )
    if hasattr(config, KV_INDEX_KEY):
        indices = _indices(config, heads, kv_heads)
    else:
        indices = [None if dense_kv == dense or n in (0, dense) else (0,) * n for n in heads]
    return [LayerSizes(*sizes) for sizes in zip(heads, kv_heads, channels, indices, strict=True)]


def shares_evenly(kv_index: Sequence[int], kv_heads: int) -> bool:
    """Whether query heads that read these key/value heads, in this order, need no index."""
    shared, rest = divmod(len(kv_index), kv_heads)
    return rest == 0 and list(kv_index) == [head for head in range(kv_heads) for _ in range(shared)]


def why_no_index(kv_index: Any, heads: int, kv_heads: int, shared: int) -> str | None:
    """What is wrong with the index of a layer; None if nothing is.

    Args:
        kv_index: what is said to be one.
        heads: query heads of the layer.
        kv_heads: key/value heads of the layer.
        shared: query heads that a key/value head of the dense model serves.
    """
    is_index = isinstance(kv_index, list | tuple) and len(kv_index) == heads and all(type(n) is int for n in kv_index)
    if (
        is_index
        and sorted(kv_index) == list(kv_index)
        and 0 <= kv_index[0] <= kv_index[-1] < kv_heads
        and max(Counter(kv_index).values()) <= shared
    ):
        return None
    return (
        f"must hold {heads} key/value heads 0 to {kv_heads - 1} in order, each at most {shared} times; got {kv_index}"
    )


def query_heads_per_key_head(config: Any) -> int:
    """Query heads that every key/value head of the dense model serves."""
    heads: int = config.num_attention_heads
    return heads // dense_key_heads(config)


def dense_key_heads(config: Any) -> int:
    """Key/value heads of the dense model."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads


def _integers(config: Any, key: str) -> list[int]:
    sizes, layers = getattr(config, key, None), config.num_hidden_layers
    if not isinstance(sizes, list) or len(sizes) != layers or not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError(f"config key {key} must list {layers} integers from 0, one per layer; got {sizes}")
    return sizes


def _indices(config: Any, heads: list[int], kv_heads: list[int]) -> list[tuple[int, ...] | None]:
    indices, layers = getattr(config, KV_INDEX_KEY), len(heads)
    if not isinstance(indices, list) or len(indices) != layers:
        raise ValueError(
            f"config key {KV_INDEX_KEY} must list {layers} entries, one per layer, each a list of key/value heads or "
            f"null; got {indices}"
        )
    found: list[tuple[int, ...] | None] = []
    for i, index in enumerate(indices):
        if index is None and heads[i] and heads[i] % kv_heads[i]:
            raise ValueError(
                f"config key {KV_INDEX_KEY} has no index for layer {i}, whose {heads[i]} query heads cannot share "
                f"{kv_heads[i]} key/value heads evenly"
            )
        wrong = None if index is None else why_no_index(index, heads[i], kv_heads[i], query_heads_per_key_head(config))
        if wrong is not None:
            raise ValueError(f"config key {KV_INDEX_KEY}, layer {i}, {wrong}")
        found.append(None if index is None else tuple(index))
    return found
