"""Cuts the matrices of one unit to a prefix, and gives them back (docs/design.md, 4.4)."""

from __future__ import annotations

import torch
from torch import nn

from ffprune_env.pruning.streaming import streamed
from ffprune_env.pruning.unit_layout import UnitLayout, member_columns, spelled_out


class Dense:
    """What one unit's modules were before they were cut.

    Args:
        layout: the unit, dense now.
    """

    def __init__(self, layout: UnitLayout) -> None:
        if layout.fused is not None:
            layout.fused.look_again()
        modules = (*layout.inputs, layout.output)
        self._linears = [(m, m.weight.data, m.bias, None if m.bias is None else m.bias.data) for m in modules]
        self._owner, self._fused = layout.owner, layout.fused
        self._num_heads: int | None = getattr(layout.owner, "num_heads", None)

    def restore(self) -> None:
        """Gives the modules back what they were, bit for bit."""
        for module, weight, parameter, bias in self._linears:
            hook = streamed(module)
            if hook is not None:
                hook.kept = None
                hook.drop(module)
            module.weight.data = weight
            module.bias = parameter
            if bias is not None:
                module.bias.data = bias
            module.out_features, module.in_features = weight.shape
        if self._fused is not None:
            self._fused.join()
        if self._num_heads is not None:
            self._owner.num_heads = self._num_heads  # type: ignore[assignment]


def shrink(layout: UnitLayout, k: int, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Replaces the matrices of a unit by views of their first k groups, and what its output projection holds.

    Args:
        layout: the unit, ranked.
        k: groups that stay.
        weight: of its output projection then, [C, k * width].
        bias: of its output projection then, [C]; None leaves it as it is.
    """
    width, members = k * layout.width, layout.members(k)
    for module, rows in zip(layout.inputs, layout.row_widths, strict=True):
        _keep_rows(module, members * rows)
    if layout.fused is not None:
        layout.fused.split()
    hook = streamed(layout.output)
    if hook is None:
        layout.output.weight.data = weight
    else:
        hook.kept = width
    layout.output.in_features = width
    if bias is not None:
        layout.output.bias = nn.Parameter(bias, requires_grad=False)
    # OPT reads its head count from the module; Llama-like attention infers it from the projection's width.
    if layout.unit.kind == "attention" and hasattr(layout.owner, "num_heads"):
        layout.owner.num_heads = width // layout.head_dim  # type: ignore[assignment]


def _keep_rows(linear: nn.Linear, rows: int) -> None:
    hook = streamed(linear)
    if hook is not None:
        hook.kept = rows
    else:
        linear.weight.data = linear.weight.data[:rows]
        if linear.bias is not None:
            linear.bias.data = linear.bias.data[:rows]
    linear.out_features = rows


def permute(layout: UnitLayout, members: torch.Tensor) -> None:
    """Moves the head or channel now at place ``members[i]`` to place i, in every matrix of the unit, in place.

    Args:
        layout: the unit, dense now.
        members: int64 [n_members], a permutation.
    """
    if layout.fused is not None:
        layout.fused.look_again()
    cuts = [(module, 0, spelled_out(members, n)) for module, n in zip(layout.inputs, layout.row_widths, strict=True)]
    for module, axis, places in (*cuts, (layout.output, 1, member_columns(layout, members))):
        hook = streamed(module)
        if hook is not None:
            hook.reorder(places)
            continue
        module.weight.data.copy_(module.weight.data.index_select(axis, places))
        if module.bias is not None and axis == 0:
            module.bias.data.copy_(module.bias.data[places])
