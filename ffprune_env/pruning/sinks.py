"""Attention sinks: whether a pruned model still marks the first token of a window, whichever token that is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import nn

from ffprune_env.lm.batches import evaluating
from ffprune_env.lm.head import decoder_outputs
from ffprune_env.pruning.prunable import Calibration, PrunableModel
from ffprune_env.pruning.units import find_layers
from ffprune_env.texts.bos import BosProtocol
from ffprune_env.texts.openings import openings_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Share of first tokens without their mark that is worth a warning: it is one window in a hundred.
MANY_LOST = 0.01
# Tokens of text that are tried as the first of a window.
_TRIED = 1024
# A mark is so many times larger than what is usual in a window, and is gone when less than this part of it is left.
_MARKED, _GONE = 10.0, 0.5


def lost_sinks(
    prunable: PrunableModel,
    kept: npt.ArrayLike,
    calibration: Calibration | None,
    windows: torch.Tensor,
    bos: BosProtocol = "never",
) -> float | None:
    """The share of tokens behind which the pruned model has no attention sink where the dense model has one.

    Many models mark the first token of a window with activations a hundred times larger than all others, and heads
    attend to it. What becomes of a first token depends on nothing else, so that a thousand of them cost as much as a
    window; and a window whose mark is gone is lost as a whole.

    Args:
        prunable: a ranked model, dense now.
        kept: int [N], groups kept per unit.
        calibration: what re-fits the surviving weights, if anything does.
        windows: int64 [n, seq_len], text whose tokens are tried as first ones.
        bos: whether windows begin with the BOS token, which is then the only first one.

    Returns:
        From 0 to 1; None for a model that marks no first token.
    """
    openings = openings_of(windows, max(1, windows.numel() // _TRIED), bos)
    if openings is None:
        openings = windows[:1, :1]
    usual = _sizes(prunable.model, windows[:1]).median()
    dense = _sizes(prunable.model, openings)
    marked = dense > _MARKED * usual
    if not bool(marked.any()):
        return None
    with prunable.pruned(kept, calibration) as model:
        left = _sizes(model, openings)
    return float((left[marked] < _GONE * dense[marked]).float().mean())


@torch.no_grad()
def _sizes(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """The largest norm of the hidden state of every token behind any layer, float32 [n * T], on the CPU."""
    sizes: list[torch.Tensor] = []

    def note(layer: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        sizes.append(hidden.float().norm(dim=-1).flatten().cpu())

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for layer in find_layers(model)[1]:
            stack.callback(layer.register_forward_hook(note).remove)
        decoder_outputs(model, windows)
    return torch.stack(sizes).amax(dim=0)
