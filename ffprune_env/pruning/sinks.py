"""Attention sinks: whether a pruned model still marks the first token of a window, whichever token that is."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.lm.batches import evaluating, fitting_size
from ffprune_env.lm.head import decoder_outputs
from ffprune_env.pruning.units import find_layers
from ffprune_env.texts.bos import BosProtocol
from ffprune_env.texts.openings import openings_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Share of first tokens without their mark that is worth a warning: it is one window in a hundred.
MANY_LOST = 0.01
# Tokens of text that are tried as the first of a window.
_TRIED = 1024
# A mark is so many times larger than what is usual in a window: smaller, and it is none. Those that we saw are 170
# times larger, and what reads them reads them through a norm, so that one of half the size does the same.
_MARKED = 10.0


@dataclass(frozen=True, eq=False)
class Sinks:
    """The first tokens that a dense model marks.

    Attributes:
        openings: int64 [m, 1], these tokens.
        layers: int64 [m], behind which layer a mark stands out most.
        least: float32 [m], the norm that the hidden state needs there to be one.
        at_once: how many of them go through a model at one time.
    """

    openings: torch.Tensor
    layers: torch.Tensor
    least: torch.Tensor
    at_once: int


def find_sinks(model: PreTrainedModel, windows: torch.Tensor, bos: BosProtocol = "never") -> Sinks | None:
    """Tries tokens of text as the first of a window.

    Many models mark that token with activations a hundred times larger than all others, and heads attend to it. What
    becomes of a first token depends on nothing else, so that a thousand of them cost as much as a window.

    Args:
        model: the dense model.
        windows: int64 [n, seq_len], text.
        bos: whether windows begin with the BOS token, which is then the only first one.

    Returns:
        What it marks; None if that is nothing.
    """
    openings = openings_of(windows, max(1, windows.numel() // _TRIED), bos)
    if openings is None:
        openings = windows[:1, :1]
    at_once = fitting_size(model, windows, None) * windows.shape[1]
    usual = _sizes(model, windows[:1], 1).median(dim=1, keepdim=True).values
    sizes = _sizes(model, openings, at_once)
    standing_out, layers = (sizes / usual).max(dim=0)
    marked = standing_out > _MARKED
    if not bool(marked.any()):
        return None
    least = _MARKED * usual[layers, 0]
    return Sinks(openings[marked.to(openings.device)], layers[marked], least[marked], at_once)


def lost_sinks(sinks: Sinks | None, model: PreTrainedModel) -> float | None:
    """The share of marks that a pruned model no longer makes: windows that begin so are lost as a whole.

    Args:
        sinks: of the dense model.
        model: the pruned one. What is not finite there is no mark.

    Returns:
        From 0 to 1; None where the dense model has none to lose.
    """
    if sinks is None:
        return None
    left = _sizes(model, sinks.openings, sinks.at_once).gather(0, sinks.layers[None])[0]
    return float((~left.isfinite() | (left < sinks.least)).float().mean())


@torch.no_grad()
def _sizes(model: PreTrainedModel, windows: torch.Tensor, at_once: int) -> torch.Tensor:
    """Norms of the hidden states behind all layers, float32 [layers, n * T], on the CPU."""
    sizes: list[torch.Tensor] = []

    def note(layer: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        sizes.append(hidden.float().norm(dim=-1).flatten().cpu())

    layers = find_layers(model)[1]
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for layer in layers:
            stack.callback(layer.register_forward_hook(note).remove)
        for batch in torch.split(windows, at_once):
            decoder_outputs(model, batch)
    return torch.cat([torch.stack(sizes[i : i + len(layers)]) for i in range(0, len(sizes), len(layers))], dim=1)
