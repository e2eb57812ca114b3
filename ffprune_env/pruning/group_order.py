"""The order of heads and channels: scores and orders checked, and matrices put in the order that they ask for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.pruning.cutting import permute
from ffprune_env.pruning.head_groups import HeadGroups
from ffprune_env.pruning.unit_layout import UnitLayout


def checked_scores(layouts: Sequence[UnitLayout], scores: Sequence[npt.ArrayLike]) -> list[FloatArray]:
    """Scores as arrays of float64, one of [n_members] per unit.

    Raises:
        ValueError: an array has the wrong length, or holds a score that is not finite.
    """
    arrays = [np.asarray(score, dtype=np.float64) for score in scores]
    if len(arrays) != len(layouts):
        raise ValueError(f"got scores for {len(arrays)} units, expected one array for each of {len(layouts)}")
    for layout, array in zip(layouts, arrays, strict=True):
        name = layout.unit.name
        if array.shape != (layout.n_members,):
            raise ValueError(f"{name}: got scores of shape {array.shape}, expected ({layout.n_members},)")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} of its scores are not finite")
    return arrays


def scores_of_order(
    layouts: Sequence[UnitLayout], order: Sequence[npt.ArrayLike], heads: HeadGroups
) -> list[FloatArray]:
    """Scores that put members in an order: the place of each, from the last.

    Args:
        layouts: of all units.
        order: per unit, int [n_members], the original index of the member for each place.
        heads: what goes at once, which not every order allows.

    Raises:
        ValueError: it is not an order of the members of every unit, or not one that ``heads`` allows.
    """
    arrays = [np.asarray(members) for members in order]
    for layout, members in zip(layouts, arrays, strict=False):
        if not np.array_equal(np.sort(members), np.arange(layout.n_members)):
            raise ValueError(f"{layout.unit.name}: an order holds each of 0 to {layout.n_members - 1} once")
        if not np.array_equal(layout.best_first(-np.argsort(members).astype(np.float64)), members):
            raise ValueError(f"{layout.unit.name}: its order is not one of {heads} heads")
    return [-np.argsort(members).astype(np.float64) for members in arrays]


def put_in_order(
    layouts: Sequence[UnitLayout], order: Sequence[torch.Tensor], wanted: Sequence[IntArray]
) -> tuple[torch.Tensor, ...]:
    """Moves rows and columns of all units; where that is interrupted some have moved and others not.

    Args:
        layouts: of all units.
        order: int64 [n_members] per unit, on its device: the original index of the member now at each place.
        wanted: the same, as it is to be.

    Returns:
        ``wanted``, on the devices of the units.
    """
    new = []
    for layout, now, after in zip(layouts, order, wanted, strict=True):
        members = torch.from_numpy(after).to(now.device)
        place = torch.empty_like(now)
        place[now] = torch.arange(len(now), device=now.device)
        permute(layout, place[members])
        new.append(members)
    return tuple(new)
