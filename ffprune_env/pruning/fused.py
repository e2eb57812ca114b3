"""Two projections in one matrix, as gate and up of Phi-3 and GLM are: cut as two views of it while they are pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ffprune_env.pruning.linear_from import linear_from


class Halves(nn.Module):
    """Stands where the matrix stood while it is cut, and gives what the matrix would with fewer rows in each half.

    Args:
        gate: the first half.
        up: the second.
    """

    def __init__(self, gate: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.gate, self.up = gate, up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] to [..., 2 · channels kept]."""
        return torch.cat((self.gate(x), self.up(x)), dim=-1)


@dataclass(frozen=True)
class Fused:
    """A linear layer whose rows are two projections, one behind the other.

    Attributes:
        owner: the module that calls it.
        name: its name there.
        linear: itself.
        halves: linear layers whose weights are views of its own; no part of the model.
    """

    owner: nn.Module
    name: str
    linear: nn.Linear
    halves: tuple[nn.Linear, nn.Linear]

    @classmethod
    def of(cls, owner: nn.Module, name: str) -> Fused:
        """The linear layer of that name, with its halves."""
        linear = getattr(owner, name)
        gate, up = row_views(linear, _half_rows(linear))
        return cls(owner, name, linear, (gate, up))

    def look_again(self) -> None:
        """Makes the halves views of what the layer holds now: the model may have been moved, or cast, since."""
        for half, view in zip(self.halves, row_views(self.linear, _half_rows(self.linear)), strict=True):
            half.weight, half.bias = view.weight, view.bias

    def split(self) -> None:
        """Puts the halves, as they are now, where the layer is."""
        self.owner._modules[self.name] = Halves(*self.halves).train(self.linear.training)

    def join(self) -> None:
        """Puts the layer back."""
        self.owner._modules[self.name] = self.linear


def row_views(linear: nn.Linear, rows: Sequence[int]) -> tuple[nn.Linear, ...]:
    """Linear layers whose weights are views of the rows of one, so many for each in turn; no part of a model."""
    with torch.no_grad():
        weights = torch.split(linear.weight.data, list(rows))
        biases = [None] * len(rows) if linear.bias is None else torch.split(linear.bias.data, list(rows))
    return tuple(linear_from(*pair, requires_grad=False) for pair in zip(weights, biases, strict=True))


def _half_rows(linear: nn.Linear) -> list[int]:
    return [linear.out_features // 2] * 2
