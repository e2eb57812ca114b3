"""Sequential calibration: unit after unit, what is left makes up for all that went wrong before it."""

from __future__ import annotations

import math

import numpy.typing as npt
import torch
import torch.nn.functional as F

from ffprune_env.lm.batches import evaluating
from ffprune_env.lm.phases import Advance, phase, windows_size
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.dense_pass import Behind, DensePass
from ffprune_env.pruning.gram import add_products
from ffprune_env.pruning.layer_calls import LayerCalls, Passage
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.unit_layout import units_of_layers

#: How many tokens of calibration text weigh as much as λ.
PRIOR_TOKENS = 8_192


class CollapsedError(ValueError):
    """The pruned model has activations that are not finite, so that nothing can be fitted to them."""


class SequentialCalibration:
    """Re-fits the output projections of one pruned model in order, each for what really flows into it.

    Eqs. 6-7 restore every unit as if the units before it were whole. They are not, and what each of them gets wrong
    stays on the residual path. Let h be the hidden state of the dense model before a unit, x the input of its output
    projection and W that; h̃, x̃ and W₀ the same in the model that is pruned, calibrated by Eqs. 6-7 and corrected up to
    there. The correction minimizes, over the tokens of calibration text,

        ‖(h + W x) - (h̃ + W' x̃)‖² / ‖h + W x‖ + λ‖W' - W₀‖²,

    so W' = W₀ + EᵀX̃ (X̃ᵀX̃ + λI)⁻¹ with E = (h + W x) - (h̃ + W₀ x̃), the rows of E and X̃ divided by √‖h + W x‖. Otherwise
    the few tokens with massive activations, a hundred times as long as others, would outweigh all of them. Divided by
    the length itself their mark is a token like any other, and 5 % of first tokens lost it in a model that we tried.

    That takes one pass through the dense model and one through the pruned one, layer by layer, and serves one
    allocation, where :class:`RidgeCalibration` serves all: it is for the model that is kept, not for the search. The
    pass through the dense model is the same for every allocation, and can be shared.

    Args:
        first: the calibration by Eqs. 6-7, which gives W₀. Ranking the model again makes this one void, too.
        kept: int [N], groups kept per unit: the allocation that is calibrated.
        windows: int64 [n, seq_len], calibration text; or a pass of the dense model over it that calibrations share.
        prior_tokens: λ, in tokens: it is so many times the mean diagonal of X̃ᵀX̃ per token, above 0, and so means less
            the more text there is. It is far more than Eq. 6 needs: most of E is what the unit cannot know, and a fit
            that follows it closely serves no other text.
        batch_size: windows per forward pass, at the most; None chooses. Most of the memory goes to the hidden states
            of all windows, whatever their number. A pass that is shared has its own.
        openings: int64 [m, 1], windows of one token that are fitted to, too (:mod:`ffprune_env.texts.openings`); those
            of a pass that is shared are its own.

    Attributes:
        first, kept, prior_tokens: as given.

    Raises:
        CollapsedError: an activation of the pruned model is not finite.
        ValueError: ``kept`` or ``prior_tokens`` is out of range, or the layers of the model are not h + attention, then
            h + FFN.
        RuntimeError: the model is pruned now, or was ranked since ``first`` was made.

    Source:
        ours.
    """

    def __init__(
        self,
        first: RidgeCalibration,
        kept: npt.ArrayLike,
        windows: torch.Tensor | DensePass,
        prior_tokens: float = PRIOR_TOKENS,
        batch_size: int | None = 1,
        openings: torch.Tensor | None = None,
    ) -> None:
        if not 0 < prior_tokens < math.inf:
            raise ValueError(f"prior_tokens must be a finite number above 0, got {prior_tokens}; 8192 is usual")
        self.prunable: PrunableModel = first.prunable
        self.prunable.require_dense("calibrate")
        self.first = first
        self.kept = self.prunable.check_kept(kept)
        self._rankings = self.prunable.rankings
        self.prior_tokens = prior_tokens
        self._weights = [first.weight(i, int(k)) for i, k in enumerate(self.kept)]
        dense = windows
        if not isinstance(dense, DensePass):
            dense = DensePass(self.prunable, dense, batch_size, room=0, openings=openings)
        if dense.prunable is not self.prunable:
            raise ValueError("the pass through the dense model is one of another PrunableModel")
        size = windows_size(tuple(dense.windows.shape))
        with phase("calibration in sequence", size, len(self.kept)) as advance, evaluating(self.prunable.model):
            self._fit(dense, advance)

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
    def _fit(self, dense: DensePass, advance: Advance) -> None:
        hidden, done = [call.hidden for call in dense.calls], 0
        layers = units_of_layers(self.prunable.layouts, len(dense.calls[0].layers))
        try:
            for number, wanted in enumerate(dense.layers()):
                hidden = self._fit_layer(dense.calls, number, layers[number], hidden, wanted)
                done += 1
                advance(len(layers[number]))
        finally:
            # A layer runs in two steps, its attention and then the rest of it: together once.
            dense.count(done / len(layers))

    def _fit_layer(
        self,
        calls: list[LayerCalls],
        number: int,
        indices: list[int],
        hidden: list[torch.Tensor],
        wanted: list[Behind],
    ) -> list[torch.Tensor]:
        """Corrects the units of a layer, and returns the hidden states behind it, one per batch like all others."""
        prunable, left = self.prunable, [i for i in indices if self.kept[i]]
        units = [prunable.layouts[i] for i in left]
        attention = [i for i in left if prunable.units[i].kind == "attention"]
        passages: list[Passage] = []
        for i in attention:
            with prunable.pruned(self.kept, self):
                regression = _Regression()
                for call, h, goal in zip(calls, hidden, wanted, strict=True):
                    passages.append(call.passage(number, units[:1], h))
                    regression.add(passages[-1].inputs[0], goal[0], passages[-1].after[0])
            self._correct(i, regression)
        behind: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        ffn = left[-1] if left[len(attention) :] else None
        with prunable.pruned(self.kept, self):
            regression = _Regression()
            passages.reverse()
            for call, h, goal in zip(calls, hidden, wanted, strict=True):
                got = call.passage(number, units, h, attended=passages.pop() if attention else None)
                if ffn is not None:
                    regression.add(got.inputs[-1], goal[-1], got.after[-1])
                behind.append((got.after[-1], None if ffn is None else got.inputs[-1]))
        if ffn is None:
            return [h for h, _ in behind]
        change = self._correct(ffn, regression)
        # What the correction of the FFN adds, without another run of the layer.
        return [_sum(h, F.linear(x.to(change), change)) for h, x in behind if x is not None]

    def _correct(self, i: int, regression: _Regression) -> torch.Tensor:
        """Adds its correction to the weights of unit i, and returns it: float32 [C, columns]."""
        change = regression.solve(self.prior_tokens, self.prunable.units[i].name)
        self._weights[i] = _sum(self._weights[i], change)
        return change


#: Calibrations that change weights and nothing else, so that what they leave can be written.
WeightCalibration = RidgeCalibration | SequentialCalibration


class _Regression:
    """What the correction of one unit is solved from, summed over tokens in float32."""

    def __init__(self) -> None:
        self.gram, self.cross, self.tokens = torch.empty(0), torch.empty(0), 0

    def add(self, x: torch.Tensor, goal: torch.Tensor, got: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            x: X̃, [B * T, columns], what flows into the output projection.
            goal: h + W x, [B, T, C], the hidden state of the dense model behind the unit.
            got: h̃ + W₀ x̃, [B, T, C], that of the pruned model.
        """
        if not self.tokens:
            self.gram = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            self.cross = torch.zeros(x.shape[1], goal.shape[-1], device=x.device)
        self.tokens += len(x)
        length = goal.flatten(0, -2).float().square().mean(-1, keepdim=True).sqrt()
        root = torch.where(length > 0, length, 1.0).sqrt()
        error = ((goal - got).flatten(0, -2) / root).to(goal.dtype)
        x = (x / root.to(x.device)).to(x.dtype)
        add_products(self.gram, x, x)
        add_products(self.cross, x, error.to(x.device))

    def solve(self, prior_tokens: float, name: str) -> torch.Tensor:
        """EᵀX̃ (X̃ᵀX̃ + λI)⁻¹, float32 [C, columns], with λ so many times the mean diagonal of X̃ᵀX̃ per token."""
        matrix = self.gram.double()
        scale = float(matrix.diagonal().mean()) / self.tokens
        if not math.isfinite(scale) or not bool(torch.isfinite(self.cross).all()):
            raise CollapsedError(f"{name}: activations of the pruned model are not finite on the calibration text")
        # A unit that never fires has nothing to correct.
        matrix.diagonal().add_(prior_tokens * (scale if scale > 0 else 1.0))
        return torch.cholesky_solve(self.cross.double(), torch.linalg.cholesky(matrix)).T.float()


def _sum(tensor: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """A tensor plus a change in float32, in the tensor's dtype."""
    return (tensor.to(torch.promote_types(torch.float32, tensor.dtype)) + change.view(tensor.shape)).to(tensor.dtype)
