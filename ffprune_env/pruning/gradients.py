"""What the loss says about every unit: moments of gradients at output projections (docs/design.md, 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from ffprune_env.lm.phases import phase, windows_size
from ffprune_env.pruning.backward import back_propagate, check_windows, without_parameter_gradients
from ffprune_env.pruning.gram import add_products
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.unit_layout import UnitLayout


@dataclass(frozen=True)
class GradientStatistics:
    """Second moments of g, the gradient of the summed token loss at the output of every output projection.

    Attributes:
        carried: per unit, float32 [n_members], E[(Σ_{j in member} x_j (Wᵀg)_j)²], in original order: the loss that
            each head or channel carries, to first order, squared; None if not asked for.
        outputs: per unit, float32 [C, C], F = E[g gᵀ]; None if not asked for.
        n_tokens: tokens the means run over.
    """

    carried: tuple[torch.Tensor, ...] | None
    outputs: tuple[torch.Tensor, ...] | None
    n_tokens: int


def collect_gradients(
    prunable: PrunableModel, windows: torch.Tensor, outputs: bool = True, carried: bool = True
) -> GradientStatistics:
    """Runs the dense model forward and backward over calibration text.

    Args:
        prunable: the model, dense now. Its gradients are not touched.
        windows: int64 [n, seq_len], calibration text; one backward pass each.
        outputs: make F, which takes C² numbers per unit.
        carried: make what every member carries, which takes a product per unit and token.

    Raises:
        RuntimeError: the model is pruned.
        ValueError: windows of another shape, or gradients that are not finite.
    """
    prunable.require_dense("collect gradients of")
    check_windows(windows)
    losses = [torch.zeros(x.n_members, device=x.output.weight.device) if carried else None for x in prunable.layouts]
    moments = [
        torch.zeros((x.output.out_features,) * 2, device=x.output.weight.device) if outputs else None
        for x in prunable.layouts
    ]
    with phase("gradients", windows_size(tuple(windows.shape)), len(windows)) as advance, ExitStack() as stack:
        stack.enter_context(without_parameter_gradients(prunable.model))
        for layout, total, moment in zip(prunable.layouts, losses, moments, strict=True):
            stack.callback(layout.output.register_forward_hook(_accumulate(layout, total, moment)).remove)
        for window in windows:
            back_propagate(prunable.model, window[None])
            advance()
    for layout, *sums in zip(prunable.layouts, losses, moments, strict=True):
        if not all(bool(torch.isfinite(total).all()) for total in sums if total is not None):
            raise ValueError(f"{layout.unit.name}: gradients are not finite: check weights and dtype")
    n = windows.numel()
    means = tuple(moment.div_(n) for moment in moments if moment is not None)
    each = tuple(
        torch.empty_like(total).index_copy_(0, prunable.order[i], total / n)
        for i, total in enumerate(losses)
        if total is not None
    )
    return GradientStatistics(each if carried else None, means if outputs else None, n)


def _accumulate(
    layout: UnitLayout, carried: torch.Tensor | None, moment: torch.Tensor | None
) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
    """A hook that adds to the sums of a unit when the gradient of its output arrives."""
    weight = layout.output.weight.detach()

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0].detach().flatten(0, -2)  # (B * T, columns)

        def on_gradient(gradient: torch.Tensor) -> None:
            g = gradient.flatten(0, -2)  # (B * T, C)
            if carried is not None:
                columns = (g.float() @ weight.float()) * x.float()
                carried.add_(columns.view(len(g), -1, layout.member_width).sum(2).square().sum(0))
            if moment is not None:
                add_products(moment, g, g)

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    return hook
