"""Attention whose query heads pick their key/value head by index: any of them may stay (docs/design.md, 4.4)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
_PREFIX = "ffprune_"
# Transformers treats names with "flash" in them, and kernels from the hub, in ways of their own.
_INDEXABLE = ("eager", "sdpa")


def require_indexable(implementation: str) -> None:
    """Raises ValueError for an attention implementation that cannot be wrapped."""
    name = implementation.removeprefix(_PREFIX)
    if not name.startswith(_INDEXABLE):
        raise ValueError(
            f"attention {name!r} cannot read keys by index, which pruned grouped-query attention needs; "
            f"allowed are {', '.join(_INDEXABLE)}: set attn_implementation to one of them"
        )


def index_keys(attention: nn.Module, kv_index: torch.Tensor) -> None:
    """Tells a grouped attention which key/value head each of its query heads reads.

    Args:
        attention: a module of a model on which :func:`use_indexed_attention` was called.
        kv_index: int64 [query heads], on the module's device.
    """
    attention.register_buffer("kv_index", kv_index, persistent=False)


def use_indexed_attention(model: PreTrainedModel, attentions: list[nn.Module]) -> None:
    """Switches a grouped-query model to attention that gathers keys and values by ``kv_index``.

    The function wraps the implementation that the model uses now, so the kernel, the masks and the cache stay
    what they were; only ``repeat_kv`` becomes an index. This file is written into the folder of every pruned model, so
    it needs nothing but torch and transformers.

    Args:
        model: the model; a second call on it changes nothing.
        attentions: its grouped attention modules.

    Raises:
        ValueError: the model uses an attention implementation that cannot be wrapped, such as flash attention.
    """
    require_indexable(model.config._attn_implementation)
    for attention in attentions:
        # What the wrapped function sees is one key/value head per query head.
        attention.num_key_value_groups = 1  # type: ignore[assignment]
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    current = model.config._attn_implementation
    if current.startswith(_PREFIX):
        return
    if current == "eager":
        # Each family has an eager function of its own, beside its attention class.
        family = sys.modules[type(attentions[0]).__module__]
        name, function = f"{_PREFIX}eager_{model.config.model_type}", family.eager_attention_forward
    else:
        name, function = _PREFIX + current, ALL_ATTENTION_FUNCTIONS[current]
    AttentionInterface.register(name, _gather_keys(function))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[current])
    model.set_attn_implementation(name)


def _gather_keys(function: AttentionFunction) -> AttentionFunction:
    def attend(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        kv_index = getattr(module, "kv_index", None)
        if kv_index is not None:  # (B, key heads, T, D) -> (B, query heads, T, D)
            key, value = key.index_select(1, kv_index), value.index_select(1, kv_index)
        return function(module, query, key, value, *args, **kwargs)

    return attend
