"""The dense model's pass over calibration text, layer by layer: made once for as many calibrations as ask for it."""

from __future__ import annotations

import logging

import psutil
import torch

from ffprune_env.lm.batches import fitting_size
from ffprune_env.pruning.layer_calls import layer_calls
from ffprune_env.pruning.prunable import PrunableModel

logger = logging.getLogger(__name__)

#: Of one batch, the hidden states after the attention and after the FFN of a layer, [B, T, C] each.
Goals = tuple[torch.Tensor, ...]

# What is remembered may take this part of the memory that is free.
_SHARE = 0.5


class DensePass:
    """What every unit of the dense model leaves on the residual path.

    Half of a calibration in sequence is a pass through the dense model, and the same for all of them. Where its hidden
    states fit into half of the memory that is free on the model's device, they are remembered; elsewhere every
    calibration makes the pass again. Nothing is copied from one device to another.

    Args:
        prunable: the ranked model, dense now; ranking it again makes this void.
        windows: int64 [n, seq_len], calibration text.
        batch_size: windows per forward pass, at the most; None chooses.
        remember: keep the states for other calibrations, if there is room for them.

    Attributes:
        calls: how the model calls its layers, per batch.
        remembers: whether states are kept.
    """

    def __init__(
        self, prunable: PrunableModel, windows: torch.Tensor, batch_size: int | None = 1, remember: bool = True
    ) -> None:
        prunable.require_dense("calibrate")
        self.prunable, self.windows = prunable, windows
        self.calls = layer_calls(
            prunable.model, torch.split(windows, fitting_size(prunable.model, windows, batch_size))
        )
        self.remembers = remember and self._size() <= _SHARE * _free(self.calls[0].hidden.device)
        self._rankings = prunable.rankings
        # What comes before layer _first, and after it and those that follow.
        self._first, self._goals = 0, [self._before()]
        if remember and not self.remembers:
            logger.info("hidden states of the dense model do not fit in memory: every calibration makes them again")

    @torch.no_grad()
    def goals(self, number: int) -> list[Goals]:
        """The states after attention and FFN of a layer, per batch.

        Args:
            number: of the layer: any that is remembered, or the one after the last that was asked for, or 0.

        Raises:
            RuntimeError: the model is pruned now, or was ranked since.
        """
        self.prunable.require_current(self._rankings)
        if number < self._first:
            self._first, self._goals = 0, [self._before()]
        while len(self._goals) <= number + 1 - self._first:
            layer = self._first + len(self._goals) - 1
            units, before = self.prunable.layouts[2 * layer : 2 * layer + 2], self._goals[-1]
            after = [call.passage(layer, units, h[-1]).after for call, h in zip(self.calls, before, strict=True)]
            self._goals.append(after)
            if not self.remembers:
                del self._goals[0]
                self._first += 1
        return self._goals[number + 1 - self._first]

    def _before(self) -> list[Goals]:
        return [(call.hidden,) for call in self.calls]

    def _size(self) -> int:
        """Bytes of all hidden states."""
        return sum(call.hidden.nbytes for call in self.calls) * len(self.prunable.units)


def _free(device: torch.device) -> int:
    """Bytes that are free where a model runs."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
