"""How far a pruned model's predictions are from the dense model's: KL over the vocabulary, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ffprune_env.lm.batches import in_fitting_batches
from ffprune_env.lm.cost import count_forward
from ffprune_env.lm.head import decoder_outputs, look_again
from ffprune_env.lm.loss import hidden_chunks, perplexity_of, vocabulary_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def final_hidden_states(
    model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None = 1
) -> list[torch.Tensor]:
    """What the dense model hands to its vocabulary projection: all that its predictions are made of.

    The projection is not pruned, so keeping [tokens, C] instead of [tokens, vocabulary] is enough to compare with.

    Args:
        model: a causal language model, dense now.
        windows: int64 [n, seq_len].
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.

    Returns:
        One [seq_len, C] per window, on the model's device.
    """

    def look(size: int) -> list[torch.Tensor]:
        states: list[torch.Tensor] = []
        for batch in torch.split(windows, size):
            states.extend(decoder_outputs(model, batch))
            count_forward(batch)
        return states

    look_again(model)
    return in_fitting_batches(model, windows, batch_size, look)


@torch.inference_mode()
def compare_with_dense(
    model: PreTrainedModel, windows: torch.Tensor, dense: Sequence[torch.Tensor], batch_size: int | None = 1
) -> tuple[float, float]:
    """Perplexity of a pruned model, and how far its next-token distributions are from the dense model's.

    Args:
        model: the pruned model.
        windows: int64 [n, seq_len].
        dense: what :func:`final_hidden_states` gave of the dense model, for the same windows.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.

    Returns:
        Perplexity as :func:`~ffprune_env.lm.loss.perplexity` has it; mean over tokens of KL(dense ‖ pruned) in nats, at
        least 0, ``inf`` if it is not finite.
    """

    def compare(size: int) -> tuple[float, torch.Tensor]:
        total, losses = 0.0, []
        for batch, states in zip(torch.split(windows, size), _batches(dense, size), strict=True):
            hidden = decoder_outputs(model, batch).flatten(0, 1)  # (B * T, C)
            count_forward(batch)
            # The last token of a window has a distribution but nothing to predict; its loss is dropped below.
            targets = batch.roll(-1, dims=1).flatten().to(hidden.device)
            divergences, loss = token_divergences(model, hidden, torch.cat(list(states)), targets)
            total += float(divergences.double().sum())
            losses.append(loss.view(batch.shape)[:, :-1].mean(dim=1))
        return total, torch.cat(losses).cpu()

    look_again(model)
    total, losses = in_fitting_batches(model, windows, batch_size, compare)
    mean = total / windows.numel()
    return perplexity_of(losses), max(mean, 0.0) if math.isfinite(mean) else math.inf


def token_divergences(
    model: PreTrainedModel, hidden: torch.Tensor, dense: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(dense ‖ pruned) and loss of every token, with the vocabulary projection computed in chunks of rows.

    Args:
        model: the model whose vocabulary projection both share.
        hidden: [tokens, C], final hidden states of the pruned model.
        dense: [tokens, C], of the dense one.
        targets: int64 [tokens], the token that follows each.

    Returns:
        Two of float32 [tokens].
    """
    divergences, losses = [], []
    chunks = (hidden_chunks(model, rows) for rows in (hidden, dense, targets))
    for chunk, reference, target in zip(*chunks, strict=True):
        log_q = F.log_softmax(vocabulary_logits(model, chunk), dim=-1)
        log_p = F.log_softmax(vocabulary_logits(model, reference), dim=-1)
        divergences.append(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1))
        losses.append(F.nll_loss(log_q, target.to(log_q.device), reduction="none"))
    return torch.cat(divergences), torch.cat(losses)


def _batches(states: Sequence[torch.Tensor], size: int) -> list[Sequence[torch.Tensor]]:
    return [states[start : start + size] for start in range(0, len(states), size)]
