"""Sequential calibration: unit after unit, what is left makes up for all that went wrong before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from ffprune_env.batches import in_fitting_batches
from ffprune_env.loss import decoder_outputs
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.gram import add_products
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.units import UnitLayout, find_layers

#: How many tokens of calibration text weigh as much as λ.
PRIOR_TOKENS = 32_768
_PROBE_TOKENS = 8
# A layer that does something else with what its units give is off by far more than rounding.
_TOLERANCE = 0.05


class SequentialCalibration:
    """Re-fits the output projections of one pruned model in order, each for what really flows into it.

    Eqs. 6-7 restore every unit as if the units before it were whole. They are not, and what each of them gets wrong
    stays on the residual path. Let h be the hidden state of the dense model before a unit, x the input of its output
    projection and W that; h̃, x̃ and W₀ the same in the model that is pruned, calibrated by Eqs. 6-7 and corrected up to
    there. The correction minimizes, over the tokens of calibration text,

        ‖(h + W x) - (h̃ + W' x̃)‖² + λ‖W' - W₀‖², so W' = W₀ + EᵀX̃ (X̃ᵀX̃ + λI)⁻¹ with E = (h + W x) - (h̃ + W₀ x̃).

    That takes one pass through the dense model and one and a half through the pruned one, layer by layer, and serves
    one allocation, where :class:`RidgeCalibration` serves all: it is for the model that is kept, not for the search.

    Args:
        first: the calibration by Eqs. 6-7, which gives W₀. Ranking the model again makes this one void, too.
        kept: int [N], groups kept per unit: the allocation that is calibrated.
        windows: int64 [n, seq_len], calibration text.
        prior_tokens: λ, in tokens: it is so many times the mean diagonal of X̃ᵀX̃ per token, above 0, and so means less
            the more text there is. It is far more than Eq. 6 needs: most of E is what the unit cannot know, and a fit
            that follows it closely serves no other text.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.

    Attributes:
        first, kept, prior_tokens: as given.

    Raises:
        ValueError: ``kept`` or ``prior_tokens`` is out of range, an activation is not finite, or the layers of the
            model are not h + attention, then h + FFN.
        RuntimeError: the model is pruned now, or was ranked since ``first`` was made.

    Source:
        ours.
    """

    def __init__(
        self,
        first: RidgeCalibration,
        kept: npt.ArrayLike,
        windows: torch.Tensor,
        prior_tokens: float = PRIOR_TOKENS,
        batch_size: int | None = 1,
    ) -> None:
        if not 0 < prior_tokens < math.inf:
            raise ValueError(f"prior_tokens must be a finite number above 0, got {prior_tokens}; 32768 is usual")
        self.prunable: PrunableModel = first.prunable
        require_residual_layers(self.prunable, windows)
        self.first = first
        self.kept = self.prunable.check_kept(kept)
        self._rankings = self.prunable.rankings
        self.prior_tokens = prior_tokens
        self._weights: list[torch.Tensor] = []
        model = self.prunable.model
        in_fitting_batches(model, windows, batch_size, lambda size: self._fit(torch.split(windows, size)))

    def serves(self, kept: npt.ArrayLike) -> bool:
        """Whether it was made for this allocation, under the ranking of now."""
        return self._rankings == self.prunable.rankings and bool((self.kept == self.prunable.check_kept(kept)).all())

    def weight(self, i: int, k: int) -> torch.Tensor:
        """The output projection of unit i, [C, k * width], for as many groups as it was made for.

        Raises:
            ValueError: k is another number of groups.
            RuntimeError: the groups were ranked again since, or the model is pruned now.
        """
        self.prunable.require_current(self._rankings)
        if k != self.kept[i]:
            name = self.prunable.units[i].name
            raise ValueError(f"{name}: calibrated in sequence with {self.kept[i]} groups kept, got {k}: make another")
        return self._weights[i]

    def bias(self, i: int, k: int) -> None:
        """Output-projection biases stay."""

    @torch.no_grad()
    def _fit(self, batches: tuple[torch.Tensor, ...]) -> None:
        prunable = self.prunable
        self._weights = [self.first.weight(i, int(k)) for i, k in enumerate(self.kept)]
        calls = _calls(prunable, batches)
        dense = [call.hidden for call in calls]
        pruned = list(dense)
        for number in range(len(prunable.units) // 2):
            units = prunable.layouts[2 * number : 2 * number + 2]
            wanted = [call.passage(number, units, h).after for call, h in zip(calls, dense, strict=True)]
            for place, layout in enumerate(units):
                after, inputs = [], []
                with prunable.pruned(self.kept, self):
                    for call, h in zip(calls, pruned, strict=True):
                        got = call.passage(number, units[: place + 1], h)
                        after.append(got.after[place])
                        inputs.append(got.inputs[place])
                errors = [goal[place] - got for goal, got in zip(wanted, after, strict=True)]
                change = _correction(errors, inputs, self.prior_tokens, layout.unit.name)
                self._weights[2 * number + place] = _sum(self._weights[2 * number + place], change)
            # What the correction of the FFN adds, without another run of the layer.
            pruned = [_sum(h, F.linear(x.to(change), change)) for h, x in zip(after, inputs, strict=True)]
            dense = [goal[1] for goal in wanted]


#: Calibrations that change weights and nothing else, so that what they leave can be written.
WeightCalibration = RidgeCalibration | SequentialCalibration


@torch.no_grad()
def require_residual_layers(prunable: PrunableModel, windows: torch.Tensor) -> None:
    """Raises ValueError unless the layers of a model are h + attention, then h + FFN, as a few tokens show.

    Args:
        prunable: the model, dense now.
        windows: int64 [n, seq_len].
    """
    prunable.require_dense("calibrate")
    (call,) = _calls(prunable, [windows[:1, :_PROBE_TOKENS]])
    h = call.hidden
    for number in range(len(prunable.units) // 2):
        passage = call.passage(number, prunable.layouts[2 * number : 2 * number + 2], h)
        before, (attended, after) = h.to(passage.after[1].device), passage.after
        change = (after - before).double()
        # What is not finite is said where activations are looked at.
        if bool((attended + passage.outputs[1] - after).double().norm() > _TOLERANCE * change.norm()):
            raise ValueError(
                f"{type(prunable.model).__name__} cannot be calibrated in sequence: its layers are not h + attention, "
                "then h + FFN; say --no-sequential"
            )
        h = after


@dataclass(frozen=True)
class _Passage:
    """One batch in one layer.

    Attributes:
        inputs: what flows into the output projections of attention and FFN, or of the attention alone, [B * T, columns]
            each; so are the others.
        outputs: what comes out of them, [B, T, C] each.
        after: the hidden state after the attention, and after the FFN, [B, T, C] each.
    """

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    after: tuple[torch.Tensor, ...]


class _Enough(Exception):  # noqa: N818 - nothing is wrong
    """What was asked of a layer is known before its end."""


@dataclass(frozen=True)
class _Calls:
    """How the model calls its layers on one batch.

    Attributes:
        hidden: [B, T, C], the hidden state before the first.
        layers: the decoder layers.
        arguments: of every layer, what it is given beside the hidden state.
    """

    hidden: torch.Tensor
    layers: nn.ModuleList
    arguments: Sequence[dict[str, Any]]

    def passage(self, number: int, units: Sequence[UnitLayout], hidden: torch.Tensor) -> _Passage:
        """Runs a layer, as it is now, on a hidden state of this batch: all of it, or its attention alone."""
        inputs, outputs, after = [], [], []

        def note(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            inputs.append(args[0].flatten(0, -2))
            outputs.append(output.reshape(hidden.shape))  # OPT flattens the tokens of a batch before its FFN
            if len(units) == 1:
                raise _Enough

        with ExitStack() as hooks, suppress(_Enough):
            for layout in units:
                hooks.callback(layout.output.register_forward_hook(note).remove)
            after.append(self.layers[number](hidden, **self.arguments[number]))
        return _Passage(tuple(inputs), tuple(outputs), (hidden.to(outputs[0].device) + outputs[0], *after))


def _calls(prunable: PrunableModel, batches: Sequence[torch.Tensor]) -> list[_Calls]:
    """How the model calls its layers on every batch: it runs with layers that do nothing."""
    layers = find_layers(prunable.model)[1]
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
            stack.enter_context(_replaced_forward(layer, partial(note, layer)))
        for batch in batches:
            decoder_outputs(prunable.model, batch)
    return [_Calls(h, layers, kwargs) for h, kwargs in zip(hidden, arguments, strict=True)]


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Lets a module do something else."""
    before = vars(module).get("forward")  # there is one where accelerate moves what a module is given
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _correction(
    errors: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], prior_tokens: float, name: str
) -> torch.Tensor:
    """EᵀX̃ (X̃ᵀX̃ + λI)⁻¹ in float32.

    Args:
        errors: E, [B, T, C] per batch.
        inputs: X̃, [B * T, columns] per batch.
        prior_tokens: λ, as so many times the mean diagonal of X̃ᵀX̃ per token.
        name: of the unit.

    Returns:
        [C, columns].
    """
    columns, device = inputs[0].shape[1], inputs[0].device
    gram = torch.zeros(columns, columns, device=device)
    cross = torch.zeros(columns, errors[0].shape[-1], device=device)
    for error, x in zip(errors, inputs, strict=True):
        add_products(gram, x, x)
        add_products(cross, x, error.to(device).flatten(0, -2))
    matrix = gram.double()
    scale = float(matrix.diagonal().mean()) / sum(len(x) for x in inputs)
    if not math.isfinite(scale):
        raise ValueError(f"{name}: its activations are not finite on the calibration text: check weights and dtype")
    # A unit that never fires has nothing to correct.
    matrix.diagonal().add_(prior_tokens * (scale if scale > 0 else 1.0))
    return torch.cholesky_solve(cross.double(), torch.linalg.cholesky(matrix)).T.float()


def _sum(tensor: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """A tensor plus a change in float32, in the tensor's dtype."""
    return (tensor.to(torch.promote_types(torch.float32, tensor.dtype)) + change.view(tensor.shape)).to(tensor.dtype)
