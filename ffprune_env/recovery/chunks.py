"""The loss from final hidden states, with the vocabulary projection in chunks of rows, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ffprune_env.recovery.soft_targets import SoftTargets, row_losses

# Logits are float32 at least, whatever the weights are.
_NARROW = (torch.bfloat16, torch.float16)


class Rows(Protocol):
    """The teacher's distributions of all rows of a batch, of which a few exist at one time."""

    def part(self, start: int, stop: int) -> SoftTargets:
        """Those of the rows from ``start`` up to ``stop``."""


@dataclass(frozen=True)
class Losses:
    """Sums over tokens.

    Attributes:
        loss: what is minimized; the only one that has a gradient.
        kl: KL to the teacher; 0 where none was asked.
        cross_entropy: of the text.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    cross_entropy: torch.Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """What the rows of a batch are to become.

    Attributes:
        labels: int64 [rows], the tokens that follow.
        rows: the teacher's distributions; None where ``share`` is 1 and nobody wants to know the KL.
        share: of the cross-entropy in the loss.
        at_once: rows whose logits exist at one time.
    """

    labels: torch.Tensor
    rows: Rows | None
    share: float
    at_once: int

    def parts(self) -> Iterator[tuple[slice, torch.Tensor, SoftTargets | None]]:
        """Rows by chunk: which, their labels, and the teacher's distributions."""
        for start in range(0, len(self.labels), self.at_once):
            here = slice(start, min(start + self.at_once, len(self.labels)))
            yield here, self.labels[here], None if self.rows is None else self.rows.part(here.start, here.stop)


def linear_losses(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, task: Task) -> Losses:
    """The losses where logits are hidden states times a matrix.

    Gradients are made in the forward pass, chunk by chunk, while the logits of a chunk are there: nothing is computed
    twice, and no more than ``task.at_once`` rows of logits ever exist.

    Args:
        hidden: [rows, C].
        weight: [vocabulary, C]; its gradient is made only if it is trained.
        bias: [vocabulary], if the head has one.
        task: what the rows are to become.
    """
    wants = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    return Losses(*_LinearLosses.apply(hidden, weight, bias, task, wants))  # type: ignore[no-untyped-call]


class _LinearLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        task: Task,
        wants: list[bool],
    ) -> tuple[torch.Tensor, ...]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        with torch.autocast(kind, enabled=False):
            matrix = weight.detach().to(dtype)
            offset = None if bias is None else bias.detach().to(dtype)
            sums = [torch.zeros((), device=hidden.device, dtype=_wide(dtype)) for _ in range(3)]
            by_hidden = torch.empty_like(hidden) if wants[0] else None
            by_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if wants[1] else None
            by_bias = torch.zeros_like(bias, dtype=_wide(bias.dtype)) if bias is not None and wants[2] else None
            for here, labels, soft in task.parts():
                states = hidden[here].to(dtype)
                log_q = F.linear(states, matrix, offset).to(_wide(dtype)).log_softmax(dim=-1)
                found = row_losses(log_q, labels, soft, task.share)
                for total, x in zip(sums, (found.loss, found.kl, found.cross_entropy), strict=True):
                    total += x.sum()
                if not any(wants):
                    continue
                by_logits = log_q.exp_().sub_(found.target)
                if by_bias is not None:
                    by_bias += by_logits.sum(dim=0)
                by_logits = by_logits.to(dtype)
                if by_hidden is not None:
                    by_hidden[here] = by_logits @ matrix
                if by_weight is not None:
                    by_weight += by_logits.T @ states
        ctx.gradients = (by_hidden, by_weight, by_bias)
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = (None if x is None else x * outer[0].to(x.dtype) for x in ctx.gradients)
        return (*found, None, None)


def native_losses(hidden: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor], task: Task) -> Losses:
    """The losses where a model's own code makes logits of hidden states: caps, scales and the like.

    Logits are made once more in the backward pass, chunk by chunk.

    Args:
        hidden: [rows, C].
        logits_of: [rows, C] to [rows, vocabulary], differentiable.
        task: what the rows are to become.
    """
    parts = []
    for here, labels, soft in task.parts():

        def lose(
            states: torch.Tensor, labels: torch.Tensor = labels, soft: SoftTargets | None = soft
        ) -> tuple[torch.Tensor, ...]:
            logits = logits_of(states)
            logits = logits.to(_wide(logits.dtype))
            found = row_losses(logits.log_softmax(dim=-1).detach(), labels, soft, task.share)
            # Its value is 0, and its gradient that of the loss by the logits.
            kept = torch.where(found.target > 0, found.target * logits, 0.0).sum(dim=-1)
            pull = (logits.logsumexp(dim=-1) - kept).sum()
            return found.loss.sum() + pull - pull.detach(), found.kl.sum(), found.cross_entropy.sum()

        again = torch.is_grad_enabled() and hidden.requires_grad
        parts.append(checkpoint(lose, hidden[here], use_reentrant=False) if again else lose(hidden[here]))
    return Losses(*(torch.stack(x).sum() for x in zip(*parts, strict=True)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _NARROW else dtype
