"""The hidden states of the dense model, layer by layer, shared by calibrations in sequence as far as memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psutil
import torch

from ffprune_env.lm.batches import evaluating, fitting_size
from ffprune_env.lm.cost import count_forward
from ffprune_env.pruning.layer_calls import LayerCalls, layer_calls, require_residual_layers
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.unit_layout import UnitLayout, units_of_layers

# Of the memory that is free on a device when the pass is made: the rest is for the calibrations themselves.
_SHARE_OF_FREE = 0.5

#: The hidden state of one batch after the attention of a layer, if that is a unit, and after the layer, [B, T, C]: once
#: if its FFN is none.
Behind = tuple[torch.Tensor, ...]


class DensePass:
    """What every unit of the dense model leaves on the residual path, for all batches of a text.

    The first to ask runs the model. The states of the first layers are remembered, as many layers as there is room
    for, on the device where they were made; nothing is copied elsewhere. Whoever asks again gets these at once, and
    the model runs from the last of them on. States are the same to the last bit either way.

    Args:
        prunable: the model, dense now. Ranking it again makes the pass void.
        windows: int64 [n, seq_len].
        batch_size: windows per forward pass, at the most; None chooses.
        room: bytes per device for what is remembered; None: half of what is free there now; 0: nothing is remembered,
            so that a pass that one calibration looks at takes the states of two layers, whatever the model.
        openings: int64 [m, 1], windows of one token, which follow the others (:mod:`ffprune_env.texts.openings`).

    Attributes:
        prunable, windows: as given.
        rankings: number of the ranking that it is of.
        calls: how the model calls its layers, per batch.

    Raises:
        ValueError: there are no windows, or the layers of the model are not h + attention, then h + FFN.
        RuntimeError: the model is pruned now.
    """

    def __init__(
        self,
        prunable: PrunableModel,
        windows: torch.Tensor,
        batch_size: int | None = 1,
        room: int | None = None,
        openings: torch.Tensor | None = None,
    ) -> None:
        prunable.require_dense("calibrate")
        require_residual_layers(prunable.model, prunable.layouts, windows)
        self.prunable, self.windows = prunable, windows
        self.rankings = prunable.rankings
        self._left = {x.device: _room(x.device) if room is None else room for x in prunable.layouts}
        self._remembered: list[list[Behind]] = []
        with evaluating(prunable.model):
            size = fitting_size(prunable.model, windows, batch_size)
            batches = [*torch.split(windows, size)]
            if openings is not None:
                batches += torch.split(openings, size * windows.shape[1])
            self.calls: list[LayerCalls] = layer_calls(prunable.model, batches)
        self._openings = openings

    @property
    def remembered(self) -> int:
        """Layers whose states are in memory; they are always the first ones."""
        return len(self._remembered)

    @property
    def n_bytes(self) -> int:
        """Memory that is taken by what is remembered."""
        return sum(_n_bytes(layer) for layer in self._remembered)

    @torch.no_grad()
    def layers(self) -> Iterator[list[Behind]]:
        """Yields, layer after layer, the states of all batches; the model must be dense whenever the next is asked for.

        Raises:
            RuntimeError: the model is pruned now, or was ranked since the pass was made.
        """
        before = [call.hidden for call in self.calls]
        layers, ran = units_of_layers(self.prunable.layouts, len(self.calls[0].layers)), 0
        try:
            for number, indices in enumerate(layers):
                self.prunable.require_current(self.rankings)
                if number < len(self._remembered):
                    behind = self._remembered[number]
                else:
                    behind = self._run(number, [self.prunable.layouts[i] for i in indices], before)
                    ran += 1
                    self._remember(number, behind)
                before = [states[-1] for states in behind]
                yield behind
        finally:
            self.count(ran / len(layers))

    def count(self, part: float) -> None:
        """Tells whoever counts that all of the text went through a part of the layers of a model."""
        count_forward(self.windows, part)
        if self._openings is not None:
            count_forward(self._openings, part, self.windows.shape[1])

    def _run(self, number: int, units: Sequence[UnitLayout], before: list[torch.Tensor]) -> list[Behind]:
        return [call.passage(number, units, h).after for call, h in zip(self.calls, before, strict=True)]

    def _remember(self, number: int, behind: list[Behind]) -> None:
        """Keeps the states of a layer if those before it are kept and there is room."""
        device, n_bytes = behind[0][-1].device, _n_bytes(behind)
        if number == len(self._remembered) and n_bytes <= self._left.get(device, 0):
            self._left[device] -= n_bytes
            self._remembered.append(behind)


def _n_bytes(layer: list[Behind]) -> int:
    return sum(state.nbytes for batch in layer for state in batch)


def _room(device: torch.device) -> int:
    """Bytes that may be taken on a device."""
    if device.type == "cuda":
        return int(_SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0])
    return int(_SHARE_OF_FREE * psutil.virtual_memory().available) if device.type == "cpu" else 0
