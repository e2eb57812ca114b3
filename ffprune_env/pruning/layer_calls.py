"""A decoder run layer by layer: how the model calls each of its layers, and what a layer does to a hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.lm.batches import evaluating
from ffprune_env.lm.head import decoder_outputs, head_of, replaced_forward
from ffprune_env.pruning.unit_layout import UnitLayout, units_of_layers
from ffprune_env.pruning.units import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How a model is wired shows on any text.
_PROBE_TOKENS = 8
# A layer that does something else with what its units give is off by far more than rounding.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Passage:
    """One batch in one layer.

    Attributes:
        inputs: what flows into the output projections of the units of the layer, or of its attention alone, [B * T,
            columns] each; so are the others.
        outputs: what comes out of them, [B, T, C] each.
        after: the hidden state after each of them, [B, T, C].
        extras: how many more things the attention returned to its layer beside what came out of its projection; None
            if it ran with its layer, or did something else with that.
    """

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    after: tuple[torch.Tensor, ...]
    extras: int | None = None


class _Enough(Exception):  # noqa: N818 - nothing is wrong
    """What was asked of a layer is known before its end."""


@dataclass(frozen=True)
class LayerCalls:
    """How the model calls its layers on one batch.

    Attributes:
        hidden: [B, T, C], the hidden state before the first.
        layers: the decoder layers.
        arguments: of every layer, what it is given beside the hidden state.
    """

    hidden: torch.Tensor
    layers: nn.ModuleList
    arguments: Sequence[dict[str, Any]]

    def passage(
        self, number: int, units: Sequence[UnitLayout], hidden: torch.Tensor, attended: Passage | None = None
    ) -> Passage:
        """Runs a layer, as it is now, on a hidden state of this batch: all of it, or its attention alone.

        Args:
            number: of the layer.
            units: those of its units that are there, or its attention alone: the layer is left behind that.
            hidden: [B, T, C].
            attended: the passage of the same hidden state through the attention alone, if nothing of the attention but
                the weights of its output projection changed since: then that is all of it that runs again.
        """
        inputs, outputs, after, extras = [], [], [], []
        attends = bool(units) and units[0].unit.kind == "attention"

        def note(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            inputs.append(args[0].flatten(0, -2))
            outputs.append(output.reshape(hidden.shape))  # OPT flattens the tokens of a batch before its FFN

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, tuple) and output[0].data_ptr() == outputs[0].data_ptr():
                extras.append(len(output) - 1)
            raise _Enough

        with ExitStack() as hooks, suppress(_Enough):
            for layout in units:
                hooks.callback(layout.output.register_forward_hook(note).remove)
            if attends and len(units) == 1:
                hooks.callback(units[0].owner.register_forward_hook(leave).remove)
            if attended is not None and attended.extras is not None:
                again = partial(_project, units[0], attended, hidden.shape)
                hooks.enter_context(replaced_forward(units[0].owner, again))
            after.append(self.layers[number](hidden, **self.arguments[number]))
        states = (*((hidden.to(outputs[0].device) + outputs[0],) if attends else ()), *after)
        return Passage(tuple(inputs), tuple(outputs), states, extras[0] if extras else None)

    def through(self, number: int, hidden: torch.Tensor, silent: UnitLayout | None = None) -> torch.Tensor:
        """The hidden state after a layer, [B, T, C], one of whose units may give nothing; arguments as for others."""
        with ExitStack() as hooks:
            if silent is not None:
                hooks.callback(silent.output.register_forward_hook(lambda *args: torch.zeros_like(args[2])).remove)
            after: torch.Tensor = self.layers[number](hidden, **self.arguments[number])
        return after


def _project(unit: UnitLayout, attended: Passage, shape: torch.Size, *_: Any, **__: Any) -> tuple[Any, ...]:
    """What an attention returns to its layer, from what flowed into its output projection before."""
    return (unit.output(attended.inputs[0].view(*shape[:-1], -1)), *[None] * (attended.extras or 0))


def probe_text(windows: torch.Tensor) -> torch.Tensor:
    """The first few tokens, int64 [1, at most 8]: enough to see how a model is wired.

    Args:
        windows: int64 [n, seq_len].

    Raises:
        ValueError: there are no windows.
    """
    if windows.ndim != 2 or not windows.numel():
        raise ValueError(f"calibration windows must be [n, seq_len] with n ≥ 1, got shape {tuple(windows.shape)}")
    return windows[:1, :_PROBE_TOKENS]


@torch.no_grad()
def layer_calls(model: PreTrainedModel, batches: Sequence[torch.Tensor]) -> list[LayerCalls]:
    """How a model calls its layers on every batch: it runs with layers that do nothing.

    Args:
        model: a causal language model.
        batches: int64 [B, T] each.
    """
    head_of(model)  # before layers do nothing
    layers = find_layers(model)[1]
    hidden: list[torch.Tensor] = []
    arguments: list[list[dict[str, Any]]] = []

    def note(layer: nn.Module, h: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if layer is layers[0]:
            hidden.append(h)
            arguments.append([])
        arguments[-1].append(kwargs)
        return h

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced_forward(layer, partial(note, layer)))
        for batch in batches:
            decoder_outputs(model, batch)
    return [LayerCalls(h, layers, kwargs) for h, kwargs in zip(hidden, arguments, strict=True)]


@torch.no_grad()
def require_residual_layers(model: PreTrainedModel, units: Sequence[UnitLayout], windows: torch.Tensor) -> None:
    """Raises ValueError unless the layers of a model are h + attention, then h + FFN, as a few tokens show.

    Args:
        model: a causal language model, dense now.
        units: its units.
        windows: int64 [n, seq_len].
    """
    text = probe_text(windows)
    with evaluating(model):
        (call,) = layer_calls(model, [text])
        h = call.hidden
        for number, indices in enumerate(units_of_layers(units, len(call.layers))):
            after = call.through(number, h)
            if indices:
                passage, last = call.passage(number, [units[i] for i in indices], h), units[indices[-1]]
                # Where the attention is no unit, what it leaves shows when the FFN gives nothing.
                before_last = passage.after[0] if len(indices) > 1 else call.through(number, h, silent=last)
                change = (after - h.to(after.device)).double()
                # What is not finite is said where activations are looked at.
                if bool((before_last + passage.outputs[-1] - after).double().norm() > _TOLERANCE * change.norm()):
                    raise ValueError(
                        f"{type(model).__name__} cannot be calibrated in sequence: its layers are not h + attention, "
                        "then h + FFN; say --calibration ridge"
                    )
            h = after
