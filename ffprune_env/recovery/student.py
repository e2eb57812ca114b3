"""The loss of a batch: the pruned model's forward pass, whose head gives losses in the place of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.lm.devices import running_device
from ffprune_env.lm.head import decoder_outputs, head_of, native_logits, replaced_forward, rows_at_once
from ffprune_env.recovery.chunks import Losses, Task, linear_losses, native_losses
from ffprune_env.recovery.hidden import hidden_errors, noting_layers
from ffprune_env.recovery.passages import scored_rows
from ffprune_env.recovery.teacher import TeacherOutput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Forward = Callable[..., Any]

# Of float32 logits that exist at one time; a chunk needs about four times that.
_LOGIT_BYTES = 64 * 2**20


def batch_losses(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    said: TeacherOutput | None,
    share: float,
    forward: Forward | None = None,
) -> Losses:
    """Losses of a batch, summed over the tokens that count.

    Where logits are hidden states times a matrix, they are computed inside the model's own forward pass, in the place
    of its head, so that whatever is wrapped around the model takes part. Where the model's own code makes logits of
    hidden states, that code is called for a few rows at a time.

    Args:
        model: the pruned model.
        batch: of :func:`~ffprune_env.recovery.passages.collate`.
        said: what the teacher says of it; None where ``share`` is 1.
        share: of the cross-entropy.
        forward: the model with what is around it, such as adapters; None: the model itself.
    """
    tokens = batch["input_ids"].to(running_device(model.get_input_embeddings()))
    labels, scored = batch["labels"].to(tokens.device), scored_rows(batch["labels"]).to(tokens.device)
    rows = None if said is None else said.rows
    task = Task(labels[:, 1:][scored], rows, share, rows_at_once(model, _LOGIT_BYTES))
    head = model.get_output_embeddings()
    if not _is_matrix(model, head):
        hidden = decoder_outputs(model, tokens)[:, :-1][scored]
        return native_losses(hidden, lambda states: native_logits(model, states), task)
    found: list[Losses] = []

    def lose(hidden: torch.Tensor) -> torch.Tensor:
        found.append(linear_losses(hidden[:, :-1][scored], head.weight, head.bias, task))
        return found[0].loss.view(1, 1, 1)

    with replaced_forward(head, lose):
        (forward or model)(input_ids=tokens, use_cache=False)
    return found[0]


def batch_losses_with_layers(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    said: TeacherOutput,
    share: float,
    weight: float,
    forward: Forward | None = None,
) -> Losses:
    """The same, with the errors of the hidden states behind every layer in the loss.

    Args:
        model: as for :func:`batch_losses`, like the arguments up to ``share`` and the last.
        batch: the batch.
        said: with the teacher's hidden states.
        share: of the cross-entropy.
        weight: of the errors.
        forward: the model with what is around it.
    """
    with noting_layers(model) as found:
        losses = batch_losses(model, batch, said, share, forward)
    errors = hidden_errors(found, said.layers, scored_rows(batch["labels"]).to(losses.loss.device))
    return replace(losses, loss=losses.loss + weight * errors)


def _is_matrix(model: PreTrainedModel, head: nn.Module) -> bool:
    """Whether logits are hidden states times a matrix, and nothing listens to the module that multiplies them."""
    if head_of(model).route != "projection" or type(head) is not nn.Linear:
        return False
    return not (head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook"))
