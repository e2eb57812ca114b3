"""Windows of tokens to loss and perplexity, by the protocol of design 4.6."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ffprune_env.batches import in_fitting_batches
from ffprune_env.devices import running_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Rows of float32 logits that live at one time: 64 MiB of them whatever the vocabulary.
_LOGIT_BYTES = 64 * 2**20
# Rows of them that a CPU takes losses of at one time: what its caches hold.
_CACHED_BYTES = 4 * 2**20
# Factors some families apply after the vocabulary projection; none of them belongs to a family we load by name.
_LOGIT_FACTORS = ("logit_scale", "logits_scaling")


def perplexity(model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None = 1) -> float:
    """Perplexity: exp of the mean over windows of the mean loss over the seq_len - 1 predicted tokens.

    Args:
        model: a causal language model, dense or pruned.
        windows: int64 [n, seq_len], non-overlapping.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.

    Returns:
        The perplexity; ``inf`` if the loss of any window is not finite or too large, which is logged.
    """
    return perplexity_of(window_losses(model, windows, batch_size))


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


def bootstrap_interval(losses: npt.ArrayLike, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a perplexity: percentile bootstrap of the mean loss over windows, then exp.

    Windows are resampled as if they were independent; how they depend on each other within one text is not seen.

    Args:
        losses: [n ≥ 2] finite, mean loss of every window (see :func:`window_losses`).
        resamples: how many times n windows are drawn with replacement.
        seed: of the draws.

    Returns:
        The lower and the upper bound.

    Raises:
        ValueError: a loss is not finite, or there are too few losses or resamples.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        finite = int(np.isfinite(values).sum())
        raise ValueError(f"an interval needs finite losses of at least 2 windows, got {finite} of shape {values.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(resamples)]
    with np.errstate(over="ignore"):  # too large for exp is inf, as in perplexity
        low, high = np.exp(np.percentile(means, (2.5, 97.5)))
    return float(low), float(high)


@torch.inference_mode()
def window_losses(model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None = 1) -> torch.Tensor:
    """Mean loss of every window over its predicted tokens.

    Args:
        model: a causal language model.
        windows: int64 [n, seq_len] with seq_len ≥ 2.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.

    Returns:
        float32 [n] on the CPU.

    Raises:
        ValueError: ``windows`` is empty, has another shape, or holds tokens that the model does not have.
    """
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ValueError(f"windows must be [n ≥ 1, seq_len ≥ 2], got shape {tuple(windows.shape)}")
    check_tokens(model, windows)

    def lose(size: int) -> torch.Tensor:
        losses = []
        for batch in torch.split(windows, size):
            hidden = decoder_outputs(model, batch)  # (B, T, C)
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
    losses = []
    for chunk, target in zip(hidden_chunks(model, hidden), hidden_chunks(model, targets), strict=True):
        logits = _native_logits(model, chunk)
        target = target.to(logits.device)
        rows = max(1, _CACHED_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
        for some, wanted in zip(torch.split(logits, rows), torch.split(target, rows), strict=True):
            losses.append(F.cross_entropy(some.float(), wanted, reduction="none"))
    return torch.cat(losses)


def hidden_chunks(model: PreTrainedModel, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Splits rows, one per token, so that the float32 logits of a chunk take a bounded piece of memory."""
    return torch.split(rows, max(1, _LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size)))


def vocabulary_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of final hidden states.

    Args:
        model: the model that made them.
        hidden: [tokens, C].

    Returns:
        float32 [tokens, vocabulary].

    Raises:
        ValueError: the model scales its logits in a way that is not known here.
    """
    return _native_logits(model, hidden).float()


def _native_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits in the dtype of the model."""
    config = model.config.get_text_config()
    for factor in _LOGIT_FACTORS:
        if getattr(config, factor, None) not in (None, 1, 1.0):
            raise ValueError(f"{type(model).__name__} scales its logits ({factor}), which the loss cannot do")
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    softcap = getattr(config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits


def decoder_outputs(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Final hidden states of a batch, without the vocabulary projection.

    Args:
        model: a causal language model.
        batch: int64 [B, T] on any device.

    Returns:
        [B, T, C] on the model's device.
    """
    decoder = model.get_decoder()
    tokens = batch.to(running_device(model.get_input_embeddings()))
    hidden: torch.Tensor = decoder(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden
