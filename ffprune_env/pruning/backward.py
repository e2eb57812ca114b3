"""One backward pass: the gradient of the summed token loss, down to the embeddings, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffprune_env.lm.batches import evaluating
from ffprune_env.lm.cost import count_backward, count_forward
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.head import decoder_outputs, head_of
from ffprune_env.lm.loss import hidden_chunks, token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.enable_grad()
def back_propagate(model: PreTrainedModel, batch: torch.Tensor) -> None:
    """Sends the gradient of the summed loss of a batch back to its embeddings; hooks on the way see it pass.

    Args:
        model: a causal language model, inside :func:`without_parameter_gradients`.
        batch: int64 [B, T] on any device.
    """
    head_of(model)  # looks at the embeddings, too, when it is first asked
    embedded: list[torch.Tensor] = []

    def cut(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some models write into their embeddings

    with ExitStack() as hook:
        hook.callback(model.get_input_embeddings().register_forward_hook(cut).remove)
        hidden = decoder_outputs(model, batch)
    count_forward(batch)
    tokens = batch.to(hidden.device)
    # Chunk by chunk down to the final hidden states, so that no more than one chunk of logits is kept.
    gradient = torch.zeros_like(hidden)
    rows, targets = hidden.detach()[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    parts: list[torch.Tensor] = []
    for chunk, target in zip(hidden_chunks(model, rows), hidden_chunks(model, targets), strict=True):
        leaf = chunk.detach().requires_grad_()
        parts += torch.autograd.grad(token_losses(model, leaf, target).sum(), leaf)
    gradient[:, :-1] = torch.cat(parts).view_as(gradient[:, :-1])
    torch.autograd.grad(hidden, embedded, gradient)
    count_backward(batch)


@contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient and nothing drops out inside; ValueError if weights are not all in memory."""
    require_resident(model, "a backward pass")
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def check_windows(windows: torch.Tensor) -> None:
    """Raises ValueError for windows that no backward pass can be made on."""
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < 2:
        raise ValueError(f"windows must be [n ≥ 1, seq_len ≥ 2], got shape {tuple(windows.shape)}")
