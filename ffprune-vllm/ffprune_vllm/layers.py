"""Builds the layers of vLLM's own families, each with the sizes that are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from ffprune_vllm.shapes import LayerShape

_CHANNELS = ("intermediate_size", "ffn_dim")


@contextmanager
def own_sizes(family: ModuleType, config: Any, shapes: tuple[LayerShape, ...], head_dim: int) -> Iterator[None]:
    """Inside the context every decoder layer of a family is built with its own numbers of heads and channels.

    All families of vLLM build their layers by a function ``make_layers``, and what they build reads its sizes from one
    configuration. So the function is wrapped where the family finds it, and the configuration holds a layer's sizes
    while that layer is built.

    Args:
        family: the module whose model builds the layers.
        config: the configuration of the model; outside it is as it was.
        shapes: of all layers.
        head_dim: of the dense model, which some families derive from the number of heads.

    Raises:
        RuntimeError: this vLLM builds the layers of the family in another way.
    """
    make_layers = getattr(family, "make_layers", None)
    if make_layers is None:
        raise RuntimeError(f"{family.__name__} of this vLLM has no make_layers: ffprune-vllm is for vLLM 0.32")
    with replaced(family, "make_layers", _sized(make_layers, config, shapes, head_dim)):
        yield


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Inside the context an attribute that exists has another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _sized(
    make_layers: Callable[..., Any], config: Any, shapes: tuple[LayerShape, ...], head_dim: int
) -> Callable[..., Any]:
    def make(n: int, layer_fn: Callable[..., nn.Module], prefix: str) -> Any:
        def build(prefix: str) -> nn.Module:
            shape = shapes[int(prefix.rsplit(".", 1)[1])]
            sizes = {
                "num_attention_heads": len(shape.query_heads),
                "num_key_value_heads": len(shape.key_heads),
                "head_dim": head_dim,
                **{name: shape.channels for name in _CHANNELS if hasattr(config, name)},
            }
            before = {name: getattr(config, name) for name in sizes if hasattr(config, name)}
            for name, size in sizes.items():
                setattr(config, name, size)
            try:
                return layer_fn(prefix=prefix)
            finally:
                for name in sizes:
                    if name in before:
                        setattr(config, name, before[name])
                    else:
                        delattr(config, name)

        return make_layers(n, build, prefix)

    return make
