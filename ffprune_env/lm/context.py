"""How many tokens a model takes at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What configurations call the longest window; most take the first name for an alias of their own.
_CONTEXT_FIELDS = ("max_position_embeddings", "max_seq_len", "max_target_positions")


def context_length(model: PreTrainedModel) -> int:
    """Longest window the model was made for, in tokens; a very large number if it has no limit.

    Args:
        model: a causal language model; of one that also sees or hears, its text decoder counts.
    """
    config = model.config.get_text_config(decoder=True)
    lengths = (getattr(config, name, None) for name in _CONTEXT_FIELDS)
    context = next((length for length in lengths if isinstance(length, int) and length > 0), sys.maxsize)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding token, in a table of the configured size.
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            context = min(context, module.num_embeddings - padding - 1)
    return context
