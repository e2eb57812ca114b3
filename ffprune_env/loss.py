"""Windows of tokens to loss and perplexity, by the protocol of design 4.6."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Rows of float32 logits that live at one time: 64 MiB of them whatever the vocabulary.
_LOGIT_BYTES = 64 * 2**20
# Factors some families apply after the vocabulary projection; none of them belongs to a family we load by name.
_LOGIT_FACTORS = ("logit_scale", "logits_scaling")


def perplexity(model: PreTrainedModel, windows: torch.Tensor, batch_size: int = 1) -> float:
    """Perplexity: exp of the mean over windows of the mean loss over the seq_len - 1 predicted tokens.

    Args:
        model: a causal language model, dense or pruned.
        windows: int64 [n, seq_len], non-overlapping.
        batch_size: windows per forward pass.

    Returns:
        The perplexity; ``inf`` if the loss of any window is not finite or too large, which is logged.
    """
    losses = window_losses(model, windows, batch_size)
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        logger.warning("perplexity is inf: %d of %d windows have no finite loss", int((~finite).sum()), len(losses))
        return math.inf
    try:
        return math.exp(losses.double().mean().item())
    except OverflowError:
        return math.inf


@torch.inference_mode()
def window_losses(model: PreTrainedModel, windows: torch.Tensor, batch_size: int = 1) -> torch.Tensor:
    """Mean loss of every window over its predicted tokens.

    Args:
        model: a causal language model.
        windows: int64 [n, seq_len] with seq_len ≥ 2.
        batch_size: windows per forward pass.

    Returns:
        float32 [n] on the CPU.

    Raises:
        ValueError: ``windows`` is empty or has another shape.
    """
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ValueError(f"windows must be [n ≥ 1, seq_len ≥ 2], got shape {tuple(windows.shape)}")
    losses = []
    for batch in torch.split(windows, batch_size):
        hidden = decoder_outputs(model, batch)  # (B, T, C)
        targets = batch.to(hidden.device)[:, 1:]
        loss = token_losses(model, hidden[:, :-1].flatten(0, 1), targets.flatten())
        losses.append(loss.view(targets.shape).mean(dim=1))
    return torch.cat(losses).cpu()


def token_losses(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss of every token, with the vocabulary projection computed in chunks of rows.

    Args:
        model: the model that made the hidden states.
        hidden: [tokens, C], final hidden states.
        targets: int64 [tokens], the token that follows each.

    Returns:
        float32 [tokens].
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    for factor in _LOGIT_FACTORS:
        if getattr(config, factor, None) not in (None, 1, 1.0):
            raise ValueError(f"{type(model).__name__} scales its logits ({factor}), which the loss cannot do")
    softcap = getattr(config, "final_logit_softcapping", None)
    rows = max(1, _LOGIT_BYTES // (4 * config.vocab_size))
    losses = []
    for chunk, target in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
        logits = head(chunk)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        losses.append(F.cross_entropy(logits.float(), target.to(logits.device), reduction="none"))
    return torch.cat(losses)


def decoder_outputs(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Final hidden states of a batch, without the vocabulary projection.

    Args:
        model: a causal language model.
        batch: int64 [B, T] on any device.

    Returns:
        [B, T, C] on the model's device.
    """
    decoder = model.get_decoder()
    hidden: torch.Tensor = decoder(input_ids=batch.to(model.device), use_cache=False).last_hidden_state
    return hidden
