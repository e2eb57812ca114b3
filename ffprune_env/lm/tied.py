"""Whether embedding and head of a model are one tensor: a config may say other than the weights are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEY = "tie_word_embeddings"


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and head are one tensor, whatever the config says.

    Where weights are not in memory nothing tells but the config, which is true of a model that
    :func:`~ffprune_env.lm.loading_report.load_whole` loaded.

    Args:
        model: a causal language model.
    """
    pair = [module.weight for module in _embedding_and_head(model)]
    if len(pair) < 2 or any(weight.is_meta for weight in pair):
        return bool(getattr(model.config, _KEY, False))
    embedding, head = pair
    return embedding is head or (
        embedding.device == head.device
        and embedding.data_ptr() == head.data_ptr()
        and (embedding.shape, embedding.stride()) == (head.shape, head.stride())
    )


def correct_config(model: PreTrainedModel, stored: Collection[str | None]) -> None:
    """Makes the config of a model that was just loaded say so where the head is a tensor of its own.

    A checkpoint may hold a head although its config says that there is none. Transformers keeps it, and would put the
    embedding in its place whenever weights are tied later.

    Args:
        model: a causal language model.
        stored: the tensors that its checkpoint holds, by the names that they have in the model.
    """
    if not getattr(model.config, _KEY, False):
        return
    pair = _embedding_and_head(model)
    names = [f"{name}.weight" for name, module in model.named_modules() if module in pair]
    if pair and all(module.weight.is_meta for module in pair):
        tied = not all(name in stored for name in names) or _same_on_disk(pair)
    else:
        tied = is_tied(model)
    setattr(model.config, _KEY, tied)


@contextmanager
def true_config(model: PreTrainedModel) -> Iterator[None]:
    """The config says inside whether embedding and head are one tensor, and afterwards what it said before.

    Args:
        model: a causal language model.
    """
    config, said = model.config, getattr(model.config, _KEY, False)
    changed = is_tied(model) != said
    if changed:
        setattr(config, _KEY, not said)
    try:
        yield
    finally:
        if changed:
            setattr(config, _KEY, said)


def _same_on_disk(modules: Iterable[nn.Module]) -> bool:
    """Whether two weights hold the same numbers: transformers, which compares those in memory, ties them then."""
    maps = [getattr(getattr(module, "_hf_hook", None), "weights_map", None) for module in modules]
    embedding, head = (None if found is None else found["weight"] for found in maps)
    return embedding is not None and head is not None and torch.equal(embedding, head)


def _embedding_and_head(model: PreTrainedModel) -> list[Any]:
    """Both modules; none where the model does not tell them."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    return found if all(isinstance(module, nn.Module) and hasattr(module, "weight") for module in found) else []
