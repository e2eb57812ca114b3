"""The matrix products of a forward pass and nothing else, on data of their own: as fast as the pass could ever be."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ffprune_env.budget.arrays import IntArray
from ffprune_env.lm.loss import window_losses
from ffprune_env.pruning.prunable import PrunableModel


@dataclass(frozen=True)
class Products:
    """Matrix products, ready to be taken.

    Attributes:
        linears: input rows and weight of every call of a linear layer.
        attentions: batch times heads, tokens and width of a head of every attention.
        inputs: data for a linear layer, by rows and columns.
        operands: query, key, weights and value for an attention, by its shape.
    """

    linears: list[tuple[int, torch.Tensor]]
    attentions: list[tuple[int, int, int]]
    inputs: dict[tuple[int, int], torch.Tensor]
    operands: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]

    @property
    def operations(self) -> int:
        """Additions and multiplications in all."""
        linear = sum(2 * rows * weight.numel() for rows, weight in self.linears)
        return linear + sum(4 * n * t * (t // 2) * d for n, t, d in self.attentions)

    @torch.inference_mode()
    def run_linear(self) -> None:
        """Takes those of the linear layers, without attention's."""
        for rows, weight in self.linears:
            F.linear(self.inputs[rows, weight.shape[1]], weight)

    @torch.inference_mode()
    def run(self) -> None:
        """Takes all of them."""
        self.run_linear()
        for shape in self.attentions:
            query, key, weights, value = self.operands[shape]
            torch.bmm(query, key)
            torch.bmm(weights, value)


def record_products(
    prunable: PrunableModel, windows: torch.Tensor, kept: IntArray, batch_size: int | None = None
) -> Products:
    """The matrix products of a forward pass of the pruned model, of the same shapes and dtype.

    Args:
        prunable: the model, ranked and dense now.
        windows: int64 [n, seq_len], what the pass reads.
        kept: int64 [N], groups kept per unit.
        batch_size: windows per forward pass; None chooses.
    """
    linears: list[tuple[int, torch.Tensor]] = []
    attentions: list[tuple[int, int, int]] = []

    def note_linear(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        assert isinstance(module, nn.Linear)
        linears.append((inputs[0].numel() // inputs[0].shape[-1], module.weight.detach()))

    with prunable.pruned(kept) as model, ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(note_linear).remove)
        for layout in prunable.layouts:
            if layout.unit.kind == "attention":

                def note_attention(
                    module: nn.Module, inputs: Any, output: torch.Tensor, d: int = layout.head_dim
                ) -> None:
                    tokens = output.shape[1]
                    attentions.append((output.numel() // (tokens * d), tokens, d))

                stack.callback(layout.inputs[0].register_forward_hook(note_attention).remove)
        window_losses(model, windows, batch_size)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=prunable.device).to(prunable.model.dtype)

    # A token attends to half of the others on average: half of the keys make as many operations as a causal pass needs.
    return Products(
        linears,
        attentions,
        {size: random(*size) for size in {(rows, weight.shape[1]) for rows, weight in linears}},
        {
            (n, t, d): (random(n, t, d), random(n, d, t // 2), random(n, t, t // 2), random(n, t // 2, d))
            for n, t, d in set(attentions)
        },
    )
