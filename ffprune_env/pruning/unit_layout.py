"""UnitLayout: where the groups of a unit live in the matrices of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.lm.devices import running_device
from ffprune_env.pruning.block import UnitBlock
from ffprune_env.pruning.fused import Fused
from ffprune_env.pruning.head_groups import best_first


@dataclass(frozen=True)
class UnitLayout:
    """Where the groups of one unit live in the model, and the heads or channels that they are made of.

    Heads and channels, the *members*, are put in order of rank one by one. A group, what is removed at once, is a
    head, or so many members as follow each other in that order. Group g of the ranked model owns the columns ``g *
    width .. (g + 1) * width`` of ``output``, and the rows of its members of every matrix in ``inputs``.

    Attributes:
        unit: what is public about it.
        owner: the attention or FFN module.
        inputs: projections whose rows are cut (q, k, v; under GQA q alone, unless key/value heads go, too; gate and up;
            fc1). Those that the model has in one matrix are views of its halves, and no modules of the model but while
            it is pruned.
        output: the projection whose columns are cut (o_proj, out_proj, down_proj, fc2).
        width: columns per group.
        member_width: columns per member: the head dimension, or 1 for an FFN channel; of a key/value head that goes
            with its query heads, those of all of these.
        row_widths: rows per member, of each of ``inputs``: as many as columns but of k and v that queries share.
        key_heads: int64 [query heads], the key/value head that each reads, in original order and on the unit's device;
            None where each has its own, or goes with it.
        balanced: whether a group is one query head of every key/value head.
        fused: the matrix that holds both inputs; None if each is a module of its own.
        block: where it is in its decoder layer.
    """

    unit: PruneUnit
    owner: nn.Module
    inputs: tuple[nn.Linear, ...]
    output: nn.Linear
    width: int
    member_width: int
    row_widths: tuple[int, ...]
    key_heads: torch.Tensor | None = None
    balanced: bool = False
    fused: Fused | None = None
    block: UnitBlock = field(kw_only=True)

    @property
    def n_members(self) -> int:
        """Heads or channels of the unit."""
        return self.members(self.unit.n_groups)

    def members(self, k: int) -> int:
        """Heads or channels in k groups."""
        return k * self.width // self.member_width

    @property
    def head_dim(self) -> int:
        """Features of a head of an attention."""
        return self.row_widths[-1]

    def best_first(self, scores: FloatArray) -> IntArray:
        """Members in the order that scores of them, [n_members], put them in: int64 [n_members]."""
        return best_first(scores, self.key_heads if self.balanced else None)

    @property
    def keys_and_values(self) -> tuple[nn.Linear, nn.Linear]:
        """The key and the value projection of an attention whose query heads share them."""
        owner: Any = self.owner
        return owner.k_proj, owner.v_proj

    def reads(self, members: torch.Tensor) -> torch.Tensor:
        """The key/value head that each of some query heads reads, int64 [m].

        Args:
            members: int64 [m], the query heads, of an attention that shares keys.
        """
        if self.key_heads is None:
            raise ValueError(f"{self.unit.name} shares no keys")
        return self.key_heads[members]

    def read_keys(self, members: torch.Tensor) -> torch.Tensor:
        """The key/value heads that any of some query heads reads, ascending; arguments as for :meth:`reads`."""
        found: torch.Tensor = torch.unique(self.reads(members))
        return found

    @property
    def device(self) -> torch.device:
        """Where the unit runs."""
        return running_device(self.output)


def units_of_layers(layouts: Sequence[UnitLayout], n_layers: int) -> list[list[int]]:
    """Indices of the units of every decoder layer, its attention first; a layer may have none left.

    Args:
        layouts: of all units, in their order.
        n_layers: decoder layers of the model.
    """
    layers: list[list[int]] = [[] for _ in range(n_layers)]
    for i, layout in enumerate(layouts):
        layers[layout.unit.layer].append(i)
    return layers


def member_columns(layout: UnitLayout, members: torch.Tensor) -> torch.Tensor:
    """Spells heads or channels out as column indices of the output projection.

    Args:
        layout: the unit.
        members: int64 [m], indices of heads or channels.

    Returns:
        int64 [m * member_width].
    """
    return spelled_out(members, layout.member_width)


def spelled_out(members: torch.Tensor, width: int) -> torch.Tensor:
    """Spells heads or channels out as indices of rows or columns, of which each has ``width``: [m] to [m * width]."""
    return (members[:, None] * width + torch.arange(width, device=members.device)).flatten()


def cut_params(inputs: Sequence[nn.Linear], output: nn.Linear) -> int:
    """Counts w_i: all of the input projections with biases, and the output weight without its bias."""
    rows = sum(module.weight.numel() + (0 if module.bias is None else module.bias.numel()) for module in inputs)
    return rows + output.weight.numel()
