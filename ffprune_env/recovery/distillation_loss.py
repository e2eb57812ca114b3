"""The loss of a recovery: how far the pruned model is from its teacher on a batch, and on the held-out part."""

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
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.student import Forward, batch_losses, batch_losses_with_layers
from ffprune_env.recovery.teacher import DenseTeacher, Teacher, TeacherOutput

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


class DistillationLoss:
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
        self._kept: dict[int, TeacherOutput] = {}
        self._bfloat16 = pick_dtype(settings.precision, self._device) is torch.bfloat16

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
        device = self._device
        batch = {name: x.to(device) for name, x in batch.items()}
        with self._products(), self._mode():
            if share == 1 and not weight and not look:
                return batch_losses(self.model, batch, None, share, forward)
            said = self._teacher_output(batch, look)
            if not weight:
                losses = batch_losses(self.model, batch, said, share, forward)
            else:
                losses = batch_losses_with_layers(self.model, batch, said, share, weight, forward)
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

    @property
    def _device(self) -> torch.device:
        """Where the model is now: of several processes each moves its own to a device of its own."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def _teacher_output(self, batch: dict[str, torch.Tensor], look: bool) -> TeacherOutput:
        """What the teacher says; of a held-out passage once for all looks, but for hidden states, which are large."""
        if not look or self.settings.hidden:
            return self.teacher.teach(batch, layers=self.settings.hidden > 0)
        number = int(batch["index"])
        if number not in self._kept:
            self._kept[number] = self.teacher.teach(batch)
        return self._kept[number]

    def _products(self) -> AbstractContextManager[object]:
        """Autocast, where products are to be bfloat16; a CPU has no layer norms of bfloat16 with weights of float16."""
        device = self._device
        mixed = device.type == "cpu" and self.model.dtype is torch.float16
        return torch.autocast(device.type, torch.bfloat16) if self._bfloat16 and not mixed else nullcontext()

    def _mode(self) -> AbstractContextManager[object]:
        return nullcontext() if self.settings.save_memory else evaluating(self.model)
