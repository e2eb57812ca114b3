"""Every tensor of a model under llama.cpp's name for it, as llama.cpp computes with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ffprune_env.export.gguf.layers import WrittenLayer, norm_weight, written_layers
from ffprune_env.export.gguf.projections import Projections
from ffprune_env.export.gguf.rope import frequency_factors, interleave_rotation, score_scale
from ffprune_env.lm.tied import is_tied
from ffprune_env.modeling.absent import is_absent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Named = tuple[str, torch.Tensor]


def tensors(
    model: PreTrainedModel, architecture: str, key_heads: Sequence[Sequence[int]], block: int
) -> Iterator[Named]:
    """Yields names and tensors, on the CPU, matrices as [outputs, inputs].

    Multipliers, which neither architecture has, go into the weights beside them: of scores into the queries, of parts
    into their output projections, of the embedding into it and, where the head is the same tensor, out of the last norm
    again.

    Args:
        model: of a family that can be written, on the CPU.
        architecture: ``"deci"`` or ``"openelm"``.
        key_heads: for each layer that is written, key/value heads by their place in its projections.
        block: channels of every FFN are made a multiple of this by channels of zeros.
    """
    decoder, config = model.get_decoder(), model.config
    embedding = getattr(decoder, "embedding_multiplier", 1.0)
    tied = is_tied(model)
    yield "token_embd.weight", _scaled(model.get_input_embeddings().weight, embedding)
    factors = frequency_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors
    for i, (written, heads) in enumerate(zip(written_layers(model), key_heads, strict=True)):
        part = getattr(written.layer, "residual_multiplier", 1.0)
        attention = _attention(model, written, architecture, heads, part) if written.has_attention else ()
        norm = norm_weight(written.layer.post_attention_layernorm, config.hidden_size)
        for name, tensor in (*attention, ("ffn_norm.weight", norm), *_ffn(written.projections, block, part)):
            yield f"blk.{i}.{name}", tensor
    logits = getattr(config, "logits_scaling", 1.0)
    yield "output_norm.weight", _scaled(decoder.norm.weight, 1 / (logits * (embedding if tied else 1)))
    if not tied:
        yield "output.weight", model.get_output_embeddings().weight


def _attention(
    model: PreTrainedModel, written: WrittenLayer, architecture: str, heads: Sequence[int], part: float
) -> Iterator[Named]:
    attention, projections = written.layer.self_attn, written.projections
    width, scale = attention.head_dim, 1.0 if is_absent(attention) else score_scale(model, attention)
    yield "attn_norm.weight", norm_weight(written.layer.input_layernorm, model.config.hidden_size)
    normed = architecture == "openelm"
    queries = _parameters(projections.queries)
    keys, values = (
        {name: x.view(-1, width, *x.shape[1:])[list(heads)].flatten(0, 1) for name, x in _parameters(linear).items()}
        for linear in (projections.keys, projections.values)
    )
    if normed:
        norms = (getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        of_queries, of_keys = (norm_weight(norm, width) for norm in norms)
        yield "attn_q_norm.weight", _scaled(of_queries, scale)
        yield "attn_k_norm.weight", of_keys
        yield "attn_qkv.weight", torch.cat([x["weight"] for x in (queries, keys, values)])
    else:
        for name in queries:
            yield f"attn_q.{name}", _scaled(interleave_rotation(queries[name], width), scale)
            yield f"attn_k.{name}", interleave_rotation(keys[name], width)
            yield f"attn_v.{name}", values[name]
    for name, tensor in _parameters(projections.attention).items():
        yield f"attn_output.{name}", _scaled(tensor, part)


def _ffn(projections: Projections, block: int, part: float) -> Iterator[Named]:
    more = -projections.up.out_features % block
    for linear, theirs in ((projections.gate, "ffn_gate"), (projections.up, "ffn_up")):
        for name, tensor in _parameters(linear).items():
            yield f"{theirs}.{name}", F.pad(tensor, (0,) * (2 * tensor.ndim - 1) + (more,))
    for name, tensor in _parameters(projections.down).items():
        padded = F.pad(tensor, (0, more)) if name == "weight" else tensor
        yield f"ffn_down.{name}", _scaled(padded, part)


def _parameters(linear: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in linear.named_parameters()}


def _scaled(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    """A tensor times a number; as it is where the number is 1 but for rounding."""
    return tensor if abs(scale - 1) < 1e-6 else tensor.float() * scale
