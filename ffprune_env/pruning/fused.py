"""Two projections in one matrix, as gate and up of Phi-3 and GLM are: cut as two views of it while they are pruned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


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
        halves = tuple(_empty_half(linear) for _ in range(2))
        fused = cls(owner, name, linear, (halves[0], halves[1]))
        fused.look_again()
        return fused

    def look_again(self) -> None:
        """Makes the halves views of what the layer holds now: the model may have been moved, or cast, since."""
        with torch.no_grad():
            for half, weight in zip(self.halves, self.linear.weight.data.chunk(2), strict=True):
                half.weight = nn.Parameter(weight, requires_grad=False)
            if self.linear.bias is not None:
                for half, bias in zip(self.halves, self.linear.bias.data.chunk(2), strict=True):
                    half.bias = nn.Parameter(bias, requires_grad=False)

    def split(self) -> None:
        """Puts the halves, as they are now, where the layer is."""
        self.owner._modules[self.name] = Halves(*self.halves).train(self.linear.training)

    def join(self) -> None:
        """Puts the layer back."""
        self.owner._modules[self.name] = self.linear


def _empty_half(linear: nn.Linear) -> nn.Linear:
    return nn.Linear(linear.in_features, linear.out_features // 2, bias=linear.bias is not None, device="meta")
