"""Parameters that go with groups: what σ counts, and what goes along for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.pruning.unit_layout import UnitLayout


def removed_params(units: Sequence[PruneUnit], kept: IntArray) -> int:
    """Parameters of units that go, in the sense of Σ w; the rest of a unit that goes entirely counts.

    Args:
        units: the N units.
        kept: int64 [N], groups kept per unit.
    """
    pairs = list(zip(units, kept, strict=True))
    whole = sum(unit.rest_params for unit, k in pairs if not k)
    return whole + sum(unit.group_params * (unit.n_groups - int(k)) for unit, k in pairs)


def unread_params(layouts: Sequence[UnitLayout], order: Sequence[torch.Tensor], kept: IntArray) -> int:
    """Parameters of keys and values that no query head reads any more: they are free, and not in Σ w.

    Args:
        layouts: of all units.
        order: int64 [n_members] per unit, the original index of the member at each place.
        kept: int64 [N], groups kept per unit.
    """
    found = 0
    for layout, members, k in zip(layouts, order, kept, strict=True):
        if layout.key_heads is None or not k:
            continue
        read = len(layout.read_keys(members[: layout.members(int(k))]))
        for linear in layout.keys_and_values:
            rows = linear.out_features - read * layout.head_dim
            found += rows * (linear.in_features + (linear.bias is not None))
    return found
