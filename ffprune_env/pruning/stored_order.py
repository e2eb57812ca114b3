"""The order of heads and channels on disk: ranked once, it is what all that is measured later goes by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ffprune_env.budget.arrays import IntArray
from ffprune_env.pruning.head_groups import HeadGroups
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.units import find_units

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The file of it, in the folder of a run and of a comparison.
ORDER = "order.json"


def order_as_json(prunable: PrunableModel) -> dict[str, str]:
    """The order of a ranked model, by name of the unit: original indices of heads or channels, the best first.

    Args:
        prunable: the model.
    """
    orders = (members.tolist() for members in prunable.order)
    return {unit.name: " ".join(map(str, order)) for unit, order in zip(prunable.units, orders, strict=True)}


def order_from_json(
    content: Mapping[str, Any], model: PreTrainedModel, file: Path, advice: str, heads: HeadGroups = "single"
) -> list[IntArray]:
    """The order that :func:`order_as_json` wrote, for ``build_evaluator``.

    Args:
        content: what the file holds.
        model: what it is to fit; not wrapped yet.
        file: for the message, like what follows.
        advice: what to do.
        heads: what of a grouped-query attention goes at once.

    Returns:
        int64 [n_members] per unit.

    Raises:
        ValueError: in one line, if it is not an order of the heads and channels of every unit of this model.
    """
    # Of some attention only a wrapped model shows that it stays whole: then the file has no order of it.
    found = find_units(model, heads=heads)
    layouts = {x.unit.name: x for x in found if x.unit.kind == "ffn" or x.unit.name in content}
    strange = sorted(layouts.keys() ^ content.keys())
    if strange:
        where = "the file" if strange[0] in layouts else "the model"
        raise ValueError(f"{file} does not fit the model: {strange[0]} is not in {where}: {advice}")
    order = []
    for name, layout in layouts.items():
        try:
            members = np.array([int(word) for word in content[name].split()], dtype=np.int64)
        except (AttributeError, ValueError, OverflowError):
            members = np.empty(0, dtype=np.int64)
        if not np.array_equal(np.sort(members), np.arange(layout.n_members)):
            due = f"each of 0 to {layout.n_members - 1} once"
            raise ValueError(f"{file} does not fit the model: of {name} it must hold {due}: {advice}")
        order.append(members)
    return order
