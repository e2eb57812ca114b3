"""How many tokens a model takes at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ffprune_env.lm.batches import is_out_of_memory
from ffprune_env.lm.head import own_logits
from ffprune_env.lm.probing import calm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# What configurations call the longest window; most take the first name for an alias of their own.
_CONTEXT_FIELDS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
_TOKENS = 9

# Of a model with such and such tables beside its embeddings, tokens that these have positions for.
_found: WeakKeyDictionary[nn.Module, tuple[list[tuple[int, int]], int]] = WeakKeyDictionary()


def context_length(model: PreTrainedModel) -> int:
    """Longest window the model was made for, in tokens; a very large number if it has no limit.

    It is what the configuration says, or less: families use the first rows of a table of positions for something else,
    or look up positions beyond the last token. A model that has tables runs once, on a few tokens, to see which rows.

    Args:
        model: a causal language model; of one that also sees or hears, its text decoder counts.
    """
    config = model.config.get_text_config(decoder=True)
    lengths = (getattr(config, name, None) for name in _CONTEXT_FIELDS)
    stated = next((length for length in lengths if isinstance(length, int) and length > 0), sys.maxsize)
    return min(stated, _rows_for_tokens(model))


def _rows_for_tokens(model: PreTrainedModel) -> int:
    """Tokens that the tables of positions have rows for; a very large number if there is no such table."""
    vocabulary = model.get_input_embeddings()
    tables = [x for x in model.modules() if isinstance(x, nn.Embedding) and x is not vocabulary]
    known = [(id(table), table.num_embeddings) for table in tables]
    if model not in _found or _found[model][0] != known:
        _found[model] = (known, _look_up(model) if tables else sys.maxsize)
    return _found[model][1]


def _look_up(model: PreTrainedModel) -> int:
    seen, vocabulary = _Positions(), model.get_input_embeddings()
    # Padding has no position of its own.
    padding = (getattr(vocabulary, "padding_idx", None), getattr(model.config, "pad_token_id", None))
    token = next(x for x in range(vocabulary.num_embeddings // 2, sys.maxsize) if x not in padding)
    try:
        with calm(model), seen:
            own_logits(model, torch.full((1, _TOKENS), token))
    except Exception as error:  # a model that wants more than tokens can raise anything; whoever measures it says so
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        logger.debug("%s: no positions seen", type(model).__name__, exc_info=True)
    return seen.fewest


class _Positions(TorchFunctionMode):
    """Watches for tables that are looked up at one row after the other.

    Attributes:
        fewest: tokens that the smallest of them has rows for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fewest = sys.maxsize

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.embedding:
            rows, table = args[:2]
            if rows.shape[-1:] == (_TOKENS,) and bool((rows.diff() == 1).all()):
                self.fewest = min(self.fewest, len(table) - 1 - int(rows.max()) + _TOKENS)
        return func(*args, **(kwargs or {}))
