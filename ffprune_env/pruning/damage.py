"""Damage curves: how much loss a unit causes at every number of groups kept (docs/design.md, 4.7)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.lm.phases import phase, windows_size
from ffprune_env.pruning.backward import back_propagate, check_windows, without_parameter_gradients
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel


def damage_curves(
    prunable: PrunableModel,
    windows: torch.Tensor,
    calibration: RidgeCalibration | None = None,
    kept: npt.ArrayLike | None = None,
) -> list[FloatArray]:
    """Estimates what keeping k groups of a unit adds to the loss, for every unit and every k.

    Let x be the input of the output projection W in order of rank and g the gradient of the summed loss at its output.
    Removing the columns j ≥ m changes a token's loss by about Σ_{j≥m} v_j x_j with v = Wᵀg, to first order; half the
    second moment of that over tokens is the empirical Fisher estimate of the mean change, in which the first-order
    terms of a trained model cancel. With calibration x is whitened, z = L⁻¹x, and v = (W L)ᵀg: what cannot be restored.
    One cumulative sum over j gives all k at once.

    With ``kept`` the same is done around the model pruned so far. L⁻¹ is triangular, so that model computes
    Σ_{j<m} (W L)_j z_j, and giving or taking columns is again a longer or shorter sum. A pruned model is at no minimum,
    so the first-order terms count: they are the gradient of the loss with respect to what every unit keeps.

    Args:
        prunable: a ranked model, dense now. Its gradients are not touched.
        windows: int64 [n, seq_len], text that neither ranked nor calibrated the model; one backward pass each.
        calibration: estimates are of the calibrated model; None: of the one that is only cut.
        kept: int [N], the allocation to look around; None looks down from the dense model.

    Returns:
        Per unit, [n_groups + 1] nats per token: the change of the loss with k groups kept, 0 at ``kept``. From the
        dense model it is a damage, 0 or more; from a pruned one it may be negative. With no group kept the bias of the
        output projection and what a norm makes of it are gone, too.

    Raises:
        RuntimeError: the model is pruned or was never ranked.
        ValueError: windows of another shape, ``kept`` that does not fit, or gradients that are not finite.
    """
    prunable.require_dense("look for damage in")
    prunable.require_ranked("look for damage in")
    check_windows(windows)
    counts = [x.unit.n_groups for x in prunable.layouts] if kept is None else prunable.check_kept(kept)
    sums = [_Sums(x.output, int(k) * x.width) for x, k in zip(prunable.layouts, counts, strict=True)]
    where = "" if kept is None else ", around a pruned model"
    size = windows_size(tuple(windows.shape)) + where
    with phase("damage curves", size, len(windows)) as advance, ExitStack() as stack:
        stack.enter_context(without_parameter_gradients(prunable.model))
        for i, layout in enumerate(prunable.layouts):
            weight = layout.output.weight[:, : sums[i].m] if calibration is None else calibration.weight(i, counts[i])
            factors = None if calibration is None else partial(calibration.factors, i)
            hook = _accumulate(layout.output, sums[i], weight.detach(), factors)
            stack.callback(layout.output.register_forward_hook(hook).remove)
            stack.callback(layout.block.end.register_forward_hook(_accumulate_whole(sums[i])).remove)
        for window in windows:
            back_propagate(prunable.model, window[None])
            advance()
    curves = []
    for layout, total in zip(prunable.layouts, sums, strict=True):
        columns = total.second / 2 if kept is None else total.second / 2 + total.first()
        if not bool(torch.isfinite(columns).all()):
            raise ValueError(f"{layout.unit.name}: gradients are not finite: check weights and dtype")
        if not total.m and layout.block.norm_behind is not None:
            columns = torch.zeros_like(columns)  # of nothing a norm has no slope
        if total.m:
            columns[0] = total.whole_second / 2 - (0 if kept is None else total.whole_first)
        # One value per group, and that of the whole unit.
        curves.append((columns[:: layout.width] / windows.numel()).double().cpu().numpy())
    return curves


class _Sums:
    """Moments over tokens of what the columns of one unit carry, seen from the first ``m`` of them.

    Attributes:
        m: columns kept.
        mean: [columns], sum of v_j z_j.
        second: [columns + 1], at q the sum of (Σ v_j z_j)² over the columns j between q and m.
        whole_first, whole_second: sums of gᵀu and its square, u what the unit adds to the hidden state.
    """

    def __init__(self, projection: nn.Linear, m: int) -> None:
        self.m = m
        self.mean = torch.zeros(projection.in_features, device=projection.weight.device)
        self.second = torch.zeros(projection.in_features + 1, device=projection.weight.device)
        self.whole_first, self.whole_second = torch.zeros(2, device=projection.weight.device)

    def add(self, carried: torch.Tensor) -> None:
        """Adds tokens: [tokens, columns]."""
        m = self.m
        self.mean.add_(carried.sum(0))
        self.second[m + 1 :].add_(carried[:, m:].cumsum(1).square().sum(0))
        self.second[:m].add_(carried[:, :m].flip(1).cumsum(1).flip(1).square().sum(0))

    def first(self) -> torch.Tensor:
        """[columns + 1], at q the signed sum of v_j z_j: given from m up to q, taken from q up to m."""
        total = torch.cat([self.mean.new_zeros(1), self.mean.cumsum(0)])
        return total - total[self.m]


def _accumulate(
    projection: nn.Linear,
    sums: _Sums,
    weight: torch.Tensor,
    factors: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None,
) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    """A hook that makes the output that of the first columns alone, and adds to the sums when its gradient arrives.

    Args:
        projection: the output projection.
        sums: where to add.
        weight: [C, m], of the first columns.
        factors: gives W L and L⁻¹, wherever they are kept: they are there no longer than one unit needs them.
    """

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if sums.m < projection.in_features:
            output = F.linear(inputs[0][..., : sums.m], weight, projection.bias if sums.m else None)
        x = inputs[0].detach().flatten(0, -2)  # (B * T, columns)

        def on_gradient(gradient: torch.Tensor) -> None:
            g = gradient.flatten(0, -2).float()
            if factors is None:
                sums.add((g @ projection.weight.detach().float()) * x.float())
            else:
                product, inverse = factors()
                carried = g @ product.to(g.device)
                sums.add(carried.mul_(x.float() @ inverse.to(g.device).T))

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        return output

    return hook


def _accumulate_whole(sums: _Sums) -> Callable[[nn.Module, object, torch.Tensor], None]:
    """A hook on where a unit ends that adds what it carries altogether when the gradient arrives."""

    def hook(module: nn.Module, inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        given = output[0] if isinstance(output, tuple) else output  # an attention gives its weights, too
        value = given.detach()  # a tensor whose hook holds it is never freed, nor is the graph behind it

        def on_gradient(gradient: torch.Tensor) -> None:
            carried = (gradient.float() * value.float()).sum(-1)
            sums.whole_first += carried.sum()
            sums.whole_second += carried.square().sum()

        given.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    return hook
