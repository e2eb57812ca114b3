"""What a pruned model is trained towards, and how far it is from that: one object that makes losses of batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from ffprune_env.lm.batches import evaluating
from ffprune_env.lm.devices import pick_dtype
from ffprune_env.recovery.chunks import Losses
from ffprune_env.recovery.passages import Passage, PassageData, collate, openings_of_batch
from ffprune_env.recovery.settings import Precision, RecoverySettings
from ffprune_env.recovery.student import Forward, batch_losses, batch_losses_with_layers
from ffprune_env.recovery.teacher import DenseTeacher, Lesson, Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HeldOut:
    """Means over the tokens of the held-out part, in nats.

    Attributes:
        loss: what is minimized.
        kl: KL(dense ‖ pruned), as far as the teacher tells.
        cross_entropy: of the text; its exponential is a perplexity.
    """

    loss: float
    kl: float
    cross_entropy: float

    def metrics(self) -> dict[str, float]:
        """By the names that they have in logs."""
        return {f"eval_{name}": value for name, value in asdict(self).items()}


class Lessons:
    """Makes losses of batches.

    Args:
        model: the pruned model.
        teacher: who says what is to be predicted.
        settings: what the loss is, and in which precision.
        openings: whether every 24th token is also seen as the first of a window
            (:mod:`ffprune_env.texts.openings`): training that sees few first tokens can lose the attention sink behind
            others. What was written to disk says nothing of them.
    """

    def __init__(
        self, model: PreTrainedModel, teacher: Teacher, settings: RecoverySettings, openings: bool = False
    ) -> None:
        self._openings = openings and isinstance(teacher, DenseTeacher)
        self.model, self.teacher, self.settings = model, teacher, settings
        device = model.get_input_embeddings().weight.device
        self._device = device
        self._said: dict[int, Lesson] = {}
        self._bfloat16 = _precision(settings.precision, device) is torch.bfloat16

    def losses(self, batch: dict[str, torch.Tensor], forward: Forward | None = None, look: bool = False) -> Losses:
        """Losses of a batch, summed over tokens.

        Without dropout: the teacher has none, and there is little text. But for ``save_memory``, which transformers
        ties to the mode of training.

        Args:
            batch: of :func:`~ffprune_env.recovery.passages.collate`.
            forward: the model with what is around it.
            look: whether it is one held-out passage; the teacher is asked even if the loss does not need it.
        """
        share, weight = self.settings.cross_entropy, self.settings.hidden
        batch = {name: x.to(self._device) for name, x in batch.items()}
        with self._products(), self._mode():
            if share == 1 and not weight and not look:
                return batch_losses(self.model, batch, None, share, forward)
            lesson = self._lesson(batch, look)
            if not weight:
                losses = batch_losses(self.model, batch, lesson, share, forward)
            else:
                losses = batch_losses_with_layers(self.model, batch, lesson, share, weight, forward)[0]
            if look or not self._openings:
                return losses
            pairs = openings_of_batch(batch)
            beside = batch_losses(self.model, pairs, self.teacher.teach(pairs), share, forward)
            return replace(losses, loss=losses.loss + beside.loss)

    @torch.no_grad()
    def held_out(self, passages: Sequence[Passage], first: int, forward: Forward | None = None) -> HeldOut:
        """Mean losses of passages, one after the other.

        Args:
            passages: the held-out part.
            first: the number of the first, as the teacher counts.
            forward: the model with what is around it.
        """
        data, sums = PassageData(passages, first), torch.zeros(3, dtype=torch.float64)
        with evaluating(self.model):
            for i in range(len(passages)):
                found = self.losses(collate([data[i]]), forward, look=True)
                sums += torch.stack([found.loss, found.kl, found.cross_entropy]).double().cpu()
        return HeldOut(*(sums / sum(passage.scored for passage in passages)).tolist())

    def _lesson(self, batch: dict[str, torch.Tensor], look: bool) -> Lesson:
        """What the teacher says; of a held-out passage once for all looks, but for hidden states, which are large."""
        if not look or self.settings.hidden:
            return self.teacher.teach(batch, layers=self.settings.hidden > 0)
        number = int(batch["index"])
        if number not in self._said:
            self._said[number] = self.teacher.teach(batch)
        return self._said[number]

    def _products(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._bfloat16 else nullcontext()

    def _mode(self) -> AbstractContextManager[object]:
        return nullcontext() if self.settings.save_memory else evaluating(self.model)


def _precision(asked: Precision, device: torch.device) -> torch.dtype:
    return pick_dtype(asked, device)
