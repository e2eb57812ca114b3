"""How the query heads of grouped-query attention go: one by one, one of every key/value head, or all of one."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch

from ffprune_env.budget.arrays import FloatArray, IntArray

#: ``single``: a group is one query head. ``balanced``: one query head of every key/value head, so that what is left is
#: shared evenly. ``groups``: a key/value head with all of its query heads. Where every query head has a key/value head
#: of its own, all three are the same.
HeadGroups = Literal["single", "balanced", "groups"]


def check_head_groups(heads: str) -> None:
    """Raises ValueError if heads cannot go so."""
    if heads not in get_args(HeadGroups):
        raise ValueError(f"unknown heads {heads!r}; allowed are {', '.join(get_args(HeadGroups))}")


def best_first(scores: FloatArray, shared: torch.Tensor | None = None) -> IntArray:
    """Members by descending score; ties keep their order.

    Args:
        scores: [n] finite.
        shared: int64 [n], the key/value head that each query head reads, where every one of them has as many: the best
            query head of each comes first, then the second best of each, and so on. None: no matter which.

    Returns:
        int64 [n], the member at each place.
    """
    order: IntArray = np.argsort(-scores, kind="stable")
    if shared is None:
        return order
    reads = shared.cpu().numpy()[order]
    rank_within: IntArray = np.empty_like(order)
    for key in np.unique(reads):
        rank_within[reads == key] = np.arange(int((reads == key).sum()))
    return order[np.lexsort((reads, rank_within))]


def heads_at_once(shared: torch.Tensor | None, heads: HeadGroups) -> int | None:
    """How many query heads a group has; None if they do not share keys so that groups of them could be made.

    Args:
        shared: int64 [query heads], the key/value head that each reads; None where each has its own.
        heads: what is to go at once, and leaves key/value heads whole.
    """
    if heads == "single" or shared is None:
        return 1
    readers = np.unique(shared.cpu().numpy(), return_counts=True)[1]
    return len(readers) if heads == "balanced" and (readers == readers[0]).all() else None
