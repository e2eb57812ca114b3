"""What a GGUF file says of its model: sizes of every layer, rotation, context."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import gguf

from ffprune_env.export.gguf.key_heads import KeyHeads
from ffprune_env.export.gguf.kinds import Kind
from ffprune_env.export.gguf.layers import written_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def write_settings(
    writer: gguf.GGUFWriter, model: PreTrainedModel, key_heads: KeyHeads, kind: Kind, block: int
) -> None:
    """Adds everything but name, tokenizer and tensors to a file.

    Args:
        writer: of the file.
        model: of a family that can be written.
        key_heads: the key/value heads that are written.
        kind: of the matrices.
        block: channels of every FFN are written as the next multiple of this.
    """
    config, layers = model.config, written_layers(model)
    projections = [x.projections for x in layers]
    head_dim = layers[0].layer.self_attn.head_dim
    writer.add_description(
        f"pruned by ffprune; {key_heads.expanded_layers} layers repeat key/value heads: {key_heads.expanded_params} "
        f"parameters more, key/value cache {key_heads.cache_growth:.2f} times that of the model it was made from"
    )
    writer.add_file_type(kind.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(layers))
    writer.add_context_length(_context(model))
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count([x.queries.out_features // head_dim for x in projections])
    writer.add_head_count_kv([len(heads) for heads in key_heads.written])
    writer.add_feed_forward_length([-(-x.up.out_features // block) * block for x in projections])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _context(model: PreTrainedModel) -> int:
    """The longest text, as long as no layer looks at a part of it only: llama.cpp would let them look at all of it."""
    context = int(model.config.max_position_embeddings)
    found = [model.config, *(layer.self_attn for layer in model.get_decoder().layers)]
    windows: list[int] = [x.sliding_window for x in found if getattr(x, "sliding_window", None) is not None]
    window = min([context, *windows])
    if window < context:
        logger.warning("llama.cpp has no sliding window here: the context is written as %d, not %d", window, context)
    return window
