"""Damage curves: how much loss a unit causes at every number of groups kept, from a few backward passes (4.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffprune_env.loss import hidden_chunks, token_losses
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FloatArray = npt.NDArray[np.float64]


def damage_curves(
    prunable: PrunableModel, windows: torch.Tensor, calibration: RidgeCalibration | None = None
) -> list[FloatArray]:
    """Estimates what keeping only the k best groups of a unit, and all of every other, adds to the loss.

    Let x be the input of the output projection W in order of rank and g the gradient of the summed loss at its output.
    Removing the columns j ≥ m changes a token's loss by about Σ_{j≥m} v_j x_j with v = Wᵀg, to first order; half the
    second moment of that over tokens is the empirical Fisher estimate of the mean change, in which the first-order
    terms of a trained model cancel. With calibration x is whitened, z = L⁻¹x, and v = (W L)ᵀg: what cannot be restored.
    One reversed cumulative sum over j gives all k at once.

    Args:
        prunable: a ranked model, dense now. Its gradients are not touched.
        windows: int64 [n, seq_len], calibration text; one backward pass each.
        calibration: estimates are of the calibrated model; None: of the one that is only cut.

    Returns:
        Per unit, [n_groups + 1] nats per token: the damage with k groups kept, 0 with all of them.

    Raises:
        RuntimeError: the model is pruned or was never ranked.
        ValueError: windows of another shape, or gradients that are not finite.
    """
    prunable.require_dense("look for damage in")
    prunable.require_ranked("look for damage in")
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < 2:
        raise ValueError(f"windows must be [n ≥ 1, seq_len ≥ 2], got shape {tuple(windows.shape)}")
    sums = [torch.zeros(x.output.in_features + 1, device=x.output.weight.device) for x in prunable.layouts]
    with ExitStack() as stack:
        stack.enter_context(_frozen(prunable.model))
        for i, layout in enumerate(prunable.layouts):
            hook = _accumulate(layout.output, sums[i], None if calibration is None else calibration.factors(i))
            stack.callback(layout.output.register_forward_hook(hook).remove)
        for window in windows:
            _backward(prunable.model, window[None])
    curves = []
    for layout, total in zip(prunable.layouts, sums, strict=True):
        if not bool(torch.isfinite(total).all()):
            raise ValueError(f"{layout.unit.name}: gradients are not finite: check weights and dtype")
        curve = (total / (2 * windows.numel()))[:: layout.width]  # one value per group, and the zero of the whole unit
        curves.append(curve.double().cpu().numpy())
    return curves


def _accumulate(
    projection: nn.Linear, total: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor] | None
) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
    """A hook that adds, for every m, the squares of Σ_{j≥m} v_j z_j over tokens when the gradient arrives."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0].detach().flatten(0, -2)  # (B * T, columns)

        def on_gradient(gradient: torch.Tensor) -> None:
            g = gradient.flatten(0, -2).float()  # (B * T, C)
            if factors is None:
                carried = (g @ projection.weight.detach().float()) * x.float()
            else:
                product, inverse = (factor.to(g.device) for factor in factors)  # W L, L⁻¹
                carried = (g @ product) * (x.float() @ inverse.T)
            from_the_end = carried.flip(1).cumsum(1).flip(1)  # at m: the sum over j ≥ m
            total[:-1].add_(from_the_end.square().sum(0))

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    return hook


@torch.enable_grad()
def _backward(model: PreTrainedModel, batch: torch.Tensor) -> None:
    """Back-propagates the summed loss of a batch to its embeddings, and leaves no gradient behind."""
    tokens = batch.to(model.device)
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    hidden = model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
    # Chunk by chunk down to the final hidden states, so that no more than one chunk of logits is kept.
    gradient = torch.zeros_like(hidden)
    rows, targets = hidden.detach()[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    parts: list[torch.Tensor] = []
    for chunk, target in zip(hidden_chunks(model, rows), hidden_chunks(model, targets), strict=True):
        leaf = chunk.detach().requires_grad_()
        parts += torch.autograd.grad(token_losses(model, leaf, target).sum(), leaf)
    gradient[:, :-1] = torch.cat(parts).view_as(gradient[:, :-1])
    torch.autograd.grad(hidden, embedded, gradient)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
