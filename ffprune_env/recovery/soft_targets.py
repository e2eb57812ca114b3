"""The teacher's distributions, whole or their top k: how far the student's are from them, and the gradient of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class SoftTargets(Protocol):
    """The teacher's distributions of a few rows: what the student is to predict."""

    def measured(self, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """KL of every row in nats, and the distribution t of which softmax(z) - t is its gradient by the logits z.

        Args:
            log_q: [rows, vocabulary], the student's log-probabilities.
        """


@dataclass(frozen=True, eq=False)
class WholeRows:
    """All of the teacher's log-probabilities.

    Attributes:
        log_p: [rows, vocabulary].
    """

    log_p: torch.Tensor

    def measured(self, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(p ‖ q) = Σ p (ln p - ln q), whose gradient by the logits is q - p; a token that p forbids adds nothing."""
        p = self.log_p.exp()
        terms = torch.where(p > 0, p * (self.log_p - log_q), 0.0)
        return terms.sum(dim=-1), p


@dataclass(frozen=True, eq=False)
class TopRows:
    """The teacher's k most probable tokens, and how probable all others are together.

    Which of the others the teacher prefers is lost. What is measured is KL between distributions over k + 1 outcomes,
    the last being "another token": never more than the KL over the vocabulary, and equal to it where the student has
    the others in the teacher's proportions. Its gradient moves probability to and from the others as a whole and
    leaves their proportions as they are.

    Attributes:
        log_p: [rows, k].
        indices: int64 [rows, k], which tokens.
        log_rest: [rows], the logarithm of the probability of all others; -inf where there are none.
    """

    log_p: torch.Tensor
    indices: torch.Tensor
    log_rest: torch.Tensor

    def measured(self, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """KL over k + 1 outcomes; t is p on the k tokens, and the rest of p in the proportions of q on the others."""
        p, rest = self.log_p.exp(), self.log_rest.exp()
        others = log_q.scatter(1, self.indices, -torch.inf)
        log_q_rest = others.logsumexp(dim=-1)
        known = torch.where(p > 0, p * (self.log_p - log_q.gather(1, self.indices)), 0.0).sum(dim=-1)
        there = (rest > 0) & torch.isfinite(log_q_rest)
        unknown = torch.where(there, rest * (self.log_rest - log_q_rest), 0.0)
        shares = torch.where(there[:, None], (others - log_q_rest[:, None]).exp() * rest[:, None], 0.0)
        return known + unknown, shares.scatter(1, self.indices, p)


def top_rows(log_p: torch.Tensor, k: int) -> TopRows:
    """The k largest of log-probabilities, and the logarithm of what is left.

    Args:
        log_p: [rows, vocabulary].
        k: how many; all where there are no more.
    """
    values, indices = log_p.topk(min(k, log_p.shape[1]), dim=-1)
    rest = log_p.scatter(1, indices, -torch.inf).logsumexp(dim=-1)
    return TopRows(values, indices, rest)


@dataclass(frozen=True, eq=False)
class RowLosses:
    """What the rows of a chunk lose.

    Attributes:
        loss: [rows], the mix that is minimized.
        kl: [rows], KL to the teacher; zeros where none was asked.
        cross_entropy: [rows].
        target: [rows, vocabulary], t: the gradient of ``loss`` by the logits z is softmax(z) - t.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    cross_entropy: torch.Tensor
    target: torch.Tensor


def row_losses(log_q: torch.Tensor, labels: torch.Tensor, soft: SoftTargets | None, share: float) -> RowLosses:
    """(1 - share) KL + share · cross-entropy of every row.

    Args:
        log_q: [rows, vocabulary], the student's log-probabilities.
        labels: int64 [rows], the tokens that follow.
        soft: the teacher's distributions; None where ``share`` is 1.
        share: of the cross-entropy.
    """
    cross_entropy = -log_q.gather(1, labels[:, None])[:, 0]
    if soft is None:
        kl, target = torch.zeros_like(cross_entropy), torch.zeros_like(log_q)
    else:
        kl, target = soft.measured(log_q)
        target = target * (1 - share)
    if share:
        target.scatter_add_(1, labels[:, None], target.new_full((len(labels), 1), share))
    return RowLosses((1 - share) * kl + share * cross_entropy, kl, cross_entropy, target)
