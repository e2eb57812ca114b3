"""What every layer of a pruned model has left, and in what shape a server that shares keys evenly can hold it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

#: Place of a query head that is not there: its rows and columns are zeros.
PADDING = -1


@dataclass(frozen=True)
class LayerShape:
    """How one decoder layer is held.

    Attributes:
        query_heads: per query head that is held, its place among those in the checkpoint, or :data:`PADDING`. Each
            key/value head is read by as many of them, in a row, as any other.
        key_heads: per key/value head that is held, its place among those in the checkpoint, ascending; those that no
            query head reads are not held.
        channels: of the FFN.
        stored_query_heads: how many the checkpoint has.
        stored_key_heads: how many the checkpoint has.
        kv_index: the key/value head that each query head in the checkpoint reads, or None where they share evenly: what
            a buffer in the checkpoint must say as well.
    """

    query_heads: tuple[int, ...]
    key_heads: tuple[int, ...]
    channels: int
    stored_query_heads: int
    stored_key_heads: int
    kv_index: tuple[int, ...] | None = None

    @property
    def as_stored(self) -> bool:
        """Whether attention is held as it is in the checkpoint."""
        return self.query_heads == tuple(range(self.stored_query_heads)) and self.key_heads == tuple(
            range(self.stored_key_heads)
        )


def layer_shapes(config: Any) -> tuple[LayerShape, ...]:
    """The shape of every layer, by what config.json of a pruned model says.

    Args:
        config: of the dense family, with the keys of a pruned model as attributes.

    Raises:
        ValueError: a key is missing, or does not fit the others; or a layer has no attention or no FFN.
    """
    layers = config.num_hidden_layers
    heads = _per_layer(config, "num_attention_heads_per_layer", layers)
    channels = _per_layer(config, "intermediate_size_per_layer", layers)
    for what, sizes in (("attention", heads), ("FFN", channels)):
        if 0 in sizes:
            raise ValueError(
                f"layer {sizes.index(0)} has no {what}, which ffprune-vllm cannot serve: take transformers or a GGUF "
                f"file, or search with --a-min above 0"
            )
    dense_keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    # Without grouped queries every query head has keys of its own, which went with it.
    grouped = dense_keys != config.num_attention_heads
    keys = getattr(config, "num_key_value_heads_per_layer", None) or ([dense_keys] * layers if grouped else heads)
    index = getattr(config, "kv_index_per_layer", None)
    if index is None:
        if grouped and any(n < config.num_attention_heads for n in heads):
            raise ValueError(
                "config.json lacks kv_index_per_layer, which says what keys a query head reads: load the folder with "
                "an ffprune that writes it, and save it again"
            )
        index = [None] * layers
    return tuple(_layer_shape(i, *sizes) for i, sizes in enumerate(zip(heads, keys, channels, index, strict=True)))


def require_parallel(shapes: tuple[LayerShape, ...], ways: int) -> None:
    """Raises ValueError where so many GPUs cannot share the heads and channels of every layer evenly."""
    for i, shape in enumerate(shapes):
        held, keys = len(shape.query_heads), len(shape.key_heads)
        if held % ways or shape.channels % ways or (keys % ways and ways % keys):
            raise ValueError(
                f"tensor_parallel_size {ways} does not divide layer {i}, which has {held} query heads on {keys} "
                f"key/value heads and {shape.channels} channels: serve it with tensor_parallel_size 1, or several GPUs "
                f"by pipeline_parallel_size"
            )


def _per_layer(config: Any, key: str, layers: int) -> list[int]:
    sizes = getattr(config, key, None)
    if not isinstance(sizes, list) or len(sizes) != layers:
        raise ValueError(f"config key {key} must list {layers} sizes, one per layer; got {sizes}")
    return sizes


def _layer_shape(i: int, heads: int, keys: int, channels: int, index: list[int] | None) -> LayerShape:
    if index is None:
        if heads % keys:
            raise ValueError(f"layer {i} has {heads} query heads on {keys} key/value heads and no key index")
        return LayerShape(tuple(range(heads)), tuple(range(keys)), channels, heads, keys)
    if len(index) != heads or index != sorted(index) or not all(0 <= key < keys for key in index):
        raise ValueError(
            f"kv_index_per_layer of layer {i} must be {heads} ascending numbers from 0 to {keys - 1}, got {index}"
        )
    count = Counter(index)
    fullest = max(count.values())
    places: list[int] = []
    for key in sorted(count):
        of_key = [place for place, read in enumerate(index) if read == key]
        places += of_key + [PADDING] * (fullest - len(of_key))
    return LayerShape(tuple(places), tuple(sorted(count)), channels, heads, keys, tuple(index))
