"""Windows of tokens to loss and perplexity, by the protocol of docs/design.md, 4.6."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from ffprune_env.lm.batches import evaluating, fitting_size, in_fitting_batches, is_out_of_memory
from ffprune_env.lm.context import context_length
from ffprune_env.lm.cost import count_forward
from ffprune_env.lm.head import (
    Head,
    decoder_outputs,
    distrust_head,
    head_of,
    look_again,
    native_logits,
    own_logits,
    rows_at_once,
)
from ffprune_env.lm.phases import Advance
from ffprune_env.lm.same_model import rounding_tolerance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Rows of float32 logits that live at one time: 64 MiB of them whatever the vocabulary.
_LOGIT_BYTES = 64 * 2**20
# Rows of them that a CPU takes losses of at one time: what its caches hold.
_CACHED_BYTES = 4 * 2**20
# Models whose loss of one window was compared with that of their own logits, and how those were made then.
_compared: WeakKeyDictionary[torch.nn.Module, Head] = WeakKeyDictionary()


def perplexity(model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None = 1) -> float:
    """Perplexity: exp of the mean over windows of the mean loss over the seq_len - 1 predicted tokens.

    The model is measured as it is now: how its logits are made is compared with its own forward pass on a few tokens at
    every call, and on a window at the first call and after a change that can be seen: of a setting of its config, and
    of hooks, modules, attributes and tensors outside its layers. What cannot be seen, and does nothing to the first few
    tokens of a text, remains undetected: such as a hook that closes over a variable, which was changed meanwhile.

    Args:
        model: a causal language model, dense or pruned.
        windows: int64 [n, seq_len], non-overlapping.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.

    Returns:
        The perplexity; ``inf`` if the loss of any window is not finite or too large, which is logged.
    """
    return perplexity_of(_window_losses(model, windows, batch_size, compare=True))


def perplexity_in_steps(
    model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None, advance: Advance
) -> float:
    """Perplexity, batch after batch, for who wants to see how far it is.

    Args:
        model: a causal language model.
        windows: int64 [n, seq_len].
        batch_size: windows per forward pass; None chooses.
        advance: called with the number of windows after every batch.
    """
    losses = []
    for part in torch.split(windows, fitting_size(model, windows, batch_size)):
        losses.append(window_losses(model, part, batch_size))
        advance(len(part))
    return perplexity_of(torch.cat(losses))


def perplexity_of(losses: torch.Tensor) -> float:
    """Perplexity from the mean loss of every window.

    Args:
        losses: float [n].

    Returns:
        exp of their mean; ``inf`` if one is not finite or the mean too large, the former of which is logged.
    """
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        logger.warning("perplexity is inf: %d of %d windows have no finite loss", int((~finite).sum()), len(losses))
        return math.inf
    try:
        return math.exp(losses.double().mean().item())
    except OverflowError:
        return math.inf


def window_losses(model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None = 1) -> torch.Tensor:
    """Mean loss of every window over its predicted tokens.

    How logits are made is compared with the model's own forward pass at the first call and after a change that can be
    seen (see :func:`~ffprune_env.lm.around_layers.state_around_layers`), which costs an unchanged model nothing;
    :func:`perplexity` does more.

    Args:
        model: a causal language model.
        windows: int64 [n, seq_len] with seq_len ≥ 2.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.

    Returns:
        float32 [n] on the CPU.

    Raises:
        ValueError: ``windows`` is empty, has another shape, is longer than the model's context, or holds tokens that
            the model does not have; or the model is no causal language model of text alone.
    """
    return _window_losses(model, windows, batch_size, compare=False)


@torch.inference_mode()
def _window_losses(
    model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None, compare: bool
) -> torch.Tensor:
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ValueError(f"windows must be [n ≥ 1, seq_len ≥ 2], got shape {tuple(windows.shape)}")
    longest = context_length(model)
    if windows.shape[1] > longest:
        raise ValueError(f"windows have {windows.shape[1]} tokens, the model takes at most {longest}: cut them shorter")
    check_tokens(model, windows)
    look_again(model, compare)
    with evaluating(model):
        _compare_once(model, windows[:1])
    if head_of(model).route == "whole":
        with evaluating(model):
            return torch.cat([_own_losses(model, window) for window in torch.split(windows, 1)]).cpu()
    return _chunked_losses(model, windows, batch_size)


def _compare_once(model: PreTrainedModel, window: torch.Tensor) -> None:
    """Compares the loss of the first window with that of the model's own logits: some things happen far inside only."""
    head = head_of(model)
    if _compared.get(model) is head or head.route == "whole":
        return
    _compared[model] = head
    hidden, targets = decoder_outputs(model, window)[0, :-1], window[0, 1:]
    count_forward(window)
    half = max(1, len(targets) // 2)  # a head that counts rows begins again in the middle
    halves = zip(torch.split(hidden, half), torch.split(targets, half), strict=True)
    chunked = torch.cat([token_losses(model, *rows) for rows in halves]).mean().cpu()
    try:
        own = _own_losses(model, window)[0].cpu()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.debug("no room for all logits of a window: they were compared on a few tokens only", exc_info=True)
        return
    if bool((chunked - own).abs() > rounding_tolerance(model.dtype)):
        distrust_head(model)


def _own_losses(model: PreTrainedModel, window: torch.Tensor) -> torch.Tensor:
    """Mean loss of one window, by logits of the model's own forward pass: [1, seq_len] to [1]."""
    logits = own_logits(model, window)[0, :-1]
    count_forward(window)
    return _losses_of(logits, window[0, 1:]).mean()[None]


def _chunked_losses(model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None) -> torch.Tensor:
    """Mean loss of every window, by logits of a few rows at a time."""

    def lose(size: int) -> torch.Tensor:
        losses = []
        for batch in torch.split(windows, size):
            hidden = decoder_outputs(model, batch)  # (B, T, C)
            count_forward(batch)
            targets = batch.to(hidden.device)[:, 1:]
            loss = token_losses(model, hidden[:, :-1].flatten(0, 1), targets.flatten())
            losses.append(loss.view(targets.shape).mean(dim=1))
        return torch.cat(losses).cpu()

    return in_fitting_batches(model, windows, batch_size, lose)


def check_tokens(model: PreTrainedModel, windows: torch.Tensor) -> None:
    """Raises ValueError for tokens without an embedding, which on a GPU would bring down the process."""
    highest, known = int(windows.max()), model.get_input_embeddings().num_embeddings
    if highest >= known:
        raise ValueError(
            f"the tokenizer does not fit the model: the text has token {highest}, the model knows 0 to {known - 1}"
        )


def token_losses(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss of every token, with the vocabulary projection computed in chunks of rows.

    Args:
        model: the model that made the hidden states.
        hidden: [tokens, C], final hidden states.
        targets: int64 [tokens], the token that follows each.

    Returns:
        float32 [tokens].
    """
    chunks = zip(hidden_chunks(model, hidden), hidden_chunks(model, targets), strict=True)
    return torch.cat([_losses_of(native_logits(model, chunk), target) for chunk, target in chunks])


def _losses_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss of every row, in float32 of a few rows at one time: [rows, vocabulary] and int64 [rows] to [rows]."""
    n_bytes = _CACHED_BYTES if logits.device.type == "cpu" else _LOGIT_BYTES
    rows = max(1, n_bytes // (4 * logits.shape[1]))
    pairs = zip(torch.split(logits, rows), torch.split(targets.to(logits.device), rows), strict=True)
    return torch.cat([F.cross_entropy(some.float(), wanted, reduction="none") for some, wanted in pairs])


def hidden_chunks(model: PreTrainedModel, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Splits rows, one per token, so that the float32 logits of a chunk take a bounded piece of memory."""
    return torch.split(rows, rows_at_once(model, _LOGIT_BYTES))


def vocabulary_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of final hidden states, as the model makes them: float32 [tokens, vocabulary] of [tokens, C]."""
    return native_logits(model, hidden).float()
