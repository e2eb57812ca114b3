"""Causal attention in tiles of queries, for processors whose fused kernel is slower than their matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SUFFIX = "_tiled"
# Queries per tile: its scores are computed by products large enough to be fast, and fit the caches.
_TILE = 256


def use_tiled_attention(model: PreTrainedModel) -> None:
    """Switches a model that attends by ``sdpa`` to :func:`tiled_attention` wherever that is faster.

    It is for whole windows in bfloat16 on a CPU with bfloat16 products but no matrix units, where torch's fused kernel
    runs at an eighth of the rate of the products. Everything else goes on to the kernel: other devices and dtypes,
    masks, a cache, whatever asks for gradients, and queries with a bias, whose scores can be so large that rounding
    them to bfloat16 shows.

    Args:
        model: the model; one with another attention implementation is left as it is, and so is one called on before.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if model.config._attn_implementation != "sdpa" or not _products_beat_the_kernel():
        return
    fused, name = ALL_ATTENTION_FUNCTIONS["sdpa"], f"sdpa{_SUFFIX}"

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        causal = kwargs.get("is_causal") is not False and getattr(module, "is_causal", True)
        biased = getattr(getattr(module, "q_proj", None), "bias", None) is not None
        whole = attention_mask is None and query.shape[-2:] == key.shape[-2:] == value.shape[-2:]
        plain = not any(kwargs.get(name) for name in ("dropout", "softcap", "output_attentions", "cache"))
        plain = plain and causal and not biased and kwargs.get("position_bias") is None
        fast = query.device.type == "cpu" and query.dtype == torch.bfloat16 and not torch.is_grad_enabled()
        if not (whole and plain and fast):
            output: tuple[torch.Tensor, torch.Tensor | None]
            output = fused(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
            return output
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        return tiled_attention(query, key, value, scaling).transpose(1, 2), None

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(name)


def tiled_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None = None
) -> torch.Tensor:
    """softmax(scaling · Q Kᵀ) V where every token sees itself and those before it.

    Tile after tile of queries meets the keys that it may see, so nearly half of the products are never made, and what
    is stored is a tile's scores. Queries and scores are rounded to the dtype of the inputs, as in eager attention; that
    is coarser than the fused kernel: in bfloat16 scores of 20 put the output off by 2 %, and the kernel's by 0.2 %.

    Args:
        query: [B, heads, T, D].
        key: like ``query``.
        value: like ``query``.
        scaling: of the scores; None takes 1 / √D.

    Returns:
        [B, heads, T, D], laid out as [B, T, heads, D], which is how the output projection reads it.
    """
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    output = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
    future = query.new_full((_TILE, _TILE), -torch.inf).triu_(1)  # added: twice as fast as a boolean mask
    for start in range(0, query.shape[2], _TILE):
        tile = query[:, :, start : start + _TILE]
        end = start + tile.shape[2]
        scores = tile @ key[:, :, :end].transpose(-1, -2)  # (B, heads, tile, end)
        scores[..., start:] += future[: end - start, : end - start]
        output[:, :, start:end] = scores.softmax(-1) @ value[:, :, :end]
    return output


def _products_beat_the_kernel() -> bool:
    """Whether this CPU multiplies bfloat16 fast but not by tiles of its own, for which the fused kernel was written."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16")) and not capabilities.get("amx_bf16")
