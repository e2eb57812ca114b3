"""What the loss of a model gains when one whole unit goes: measured, since curves are far off there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.lm.head import replaced_forward
from ffprune_env.lm.loss import window_losses
from ffprune_env.lm.phases import phase, windows_size
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.units import find_layers


@torch.no_grad()
def drop_losses(prunable: PrunableModel, windows: torch.Tensor) -> FloatArray:
    """The change of the loss when one unit after the other is left out of the dense model.

    Layers before a unit compute what they did, so they run once for all: it costs about half a forward pass per unit.

    Args:
        prunable: the model, dense now.
        windows: int64 [n, seq_len], text that neither ranked nor calibrated the model.

    Returns:
        float64 [N] nats per token; infinite where the model without the unit has no finite loss.

    Raises:
        RuntimeError: the model is pruned.
        ValueError: the layers of the model cannot do without a part.
    """
    prunable.require_dense("leave units out of")
    prunable.require_can_go({unit.kind for unit in prunable.units})
    layers, n = find_layers(prunable.model)[1], len(prunable.units)
    changes = np.zeros(n)
    with phase("units left out", f"{n} units, {windows_size(tuple(windows.shape))}", n * len(windows)) as advance:
        for window in windows:
            behind: list[torch.Tensor] = []
            with ExitStack() as hooks:
                window_losses(prunable.model, window[None])  # looks at how logits are made, if it is the first time
                for layer in layers:
                    hooks.callback(layer.register_forward_hook(lambda *args, to=behind: to.append(args[2])).remove)
                dense = float(window_losses(prunable.model, window[None]).double().mean())
            for i, layout in enumerate(prunable.layouts):
                with ExitStack() as changed:
                    for layer, state in zip(layers[: layout.unit.layer], behind, strict=False):
                        changed.enter_context(replaced_forward(layer, _Said(state)))
                    changed.enter_context(layout.block.left_out())
                    changes[i] += float(window_losses(prunable.model, window[None]).double().mean()) - dense
                advance()
    return np.where(np.isfinite(changes), changes, np.inf) / len(windows)


def with_drops(curves: Sequence[FloatArray], drops: FloatArray) -> list[FloatArray]:
    """Damage curves that end where dropping the whole unit was measured: no part of it does more damage.

    Args:
        curves: per unit, [n_groups + 1] damage with k groups kept.
        drops: [N], as :func:`drop_losses` gives them.
    """
    fitted = []
    for curve, drop in zip(curves, np.maximum(drops, 0.0), strict=True):
        changed = np.minimum(curve, drop)
        changed[0] = drop
        fitted.append(changed)
    return fitted


class _Said:
    """A layer that says what it said before."""

    def __init__(self, state: torch.Tensor) -> None:
        self._state = state

    def __call__(self, *_: Any, **__: Any) -> torch.Tensor:
        return self._state
