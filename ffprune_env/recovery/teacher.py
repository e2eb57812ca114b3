"""The dense model as a teacher: beside the pruned one in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ffprune_env.lm.batches import evaluating
from ffprune_env.lm.devices import running_device
from ffprune_env.lm.head import Head, decoder_outputs, head_of, look_again
from ffprune_env.lm.loss import vocabulary_logits
from ffprune_env.recovery.chunks import Rows
from ffprune_env.recovery.hidden import layers_of, noting_layers
from ffprune_env.recovery.passages import scored_rows
from ffprune_env.recovery.soft_targets import WholeRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """What a teacher says of a batch.

    Attributes:
        rows: its distributions, of the tokens that count, passage after passage.
        layers: its hidden states behind every layer, [B, T, C] each; empty where nobody asked.
    """

    rows: Rows
    layers: Sequence[torch.Tensor] = ()


class Teacher(Protocol):
    """Who says what is to be predicted."""

    @property
    def vocabulary(self) -> int:
        """Tokens that there are probabilities of."""

    def teach(self, batch: dict[str, torch.Tensor], layers: bool = False) -> TeacherOutput:
        """What it says of a batch.

        Args:
            batch: of :func:`~ffprune_env.recovery.passages.collate`.
            layers: whether its hidden states are wanted.
        """


class DenseTeacher:
    """The dense model itself; its final hidden states of a batch are kept, and logits of a few rows at a time made.

    Args:
        model: the dense model; it is not changed.

    Raises:
        ValueError: it has no hidden states that give its logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        look_again(model)
        self.model = model
        self._head = usable_head(model, "the dense model")

    @property
    def vocabulary(self) -> int:
        """Tokens that there are probabilities of."""
        return self._head.vocabulary

    @torch.no_grad()
    def teach(self, batch: dict[str, torch.Tensor], layers: bool = False) -> TeacherOutput:
        """What it says of a batch; see :class:`Teacher`."""
        with as_it_is(self.model):
            if not layers:
                states, found = decoder_outputs(self.model, batch["input_ids"]), {}
            else:
                with noting_layers(self.model) as found:
                    states = decoder_outputs(self.model, batch["input_ids"])
        kept = states[:, :-1][scored_rows(batch["labels"]).to(states.device)]
        n = len(layers_of(self.model)) if layers else 0
        return TeacherOutput(_DenseRows(self.model, kept, batch["labels"].device), [found[i] for i in range(n)])


@dataclass(frozen=True, eq=False)
class _DenseRows:
    model: PreTrainedModel
    states: torch.Tensor
    device: torch.device

    @torch.no_grad()
    def part(self, start: int, stop: int) -> WholeRows:
        with as_it_is(self.model):
            logits = vocabulary_logits(self.model, self.states[start:stop])
        return WholeRows(logits.log_softmax(dim=-1).to(self.device))


@contextmanager
def as_it_is(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the dense model computes in its own number format and drops nothing, whatever training does around it.

    Autocast would let some layers hand on float32, which a narrow head does not take, and round what is wide.

    Args:
        model: the dense model.
    """
    kind = running_device(model.get_input_embeddings()).type
    with torch.autocast(kind, enabled=False), evaluating(model):
        yield


def usable_head(model: PreTrainedModel, which: str) -> Head:
    """How the logits of a model are made; ValueError where nothing but its own forward pass knows.

    Args:
        model: a causal language model.
        which: it is, for the message.
    """
    head = head_of(model)
    if head.route == "whole":
        raise ValueError(
            f"{which}, {type(model).__name__}, has no hidden states that give its logits: it cannot be used in a "
            f"recovery, whose loss is computed a few rows at a time"
        )
    return head
