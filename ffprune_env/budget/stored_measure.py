"""A measure as JSON: a search is about what the units cost when it began, whatever they would cost if asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ffprune_env.budget.budget import MeasureName
from ffprune_env.budget.measure import Measure
from ffprune_env.budget.units import PruneUnit


def measure_content(measure: Measure) -> dict[str, Any]:
    """What is counted of a model, and what each unit costs with 0, 1, ... groups kept; null where parameters say it.

    Args:
        measure: of the dense model.
    """
    return {
        "measure": measure.name,
        "dense": measure.dense,
        "per_weight": measure.per_weight,
        "costs": [unit.costs for unit in measure.units],
    }


def measure_from_content(content: Mapping[str, Any], name: MeasureName, units: Sequence[PruneUnit]) -> Measure:
    """The measure that was written down.

    Args:
        content: as :func:`measure_content` gives it, after JSON.
        name: of the measure that is needed.
        units: the N units of the model, whatever they cost.

    Raises:
        ValueError: it is not of this measure and of these units; the message says what is wrong.
    """
    try:
        measured, costs = content["measure"], [None if x is None else tuple(map(int, x)) for x in content["costs"]]
        dense, per_weight = int(content["dense"]), int(content["per_weight"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"what the units cost cannot be read: {error!r}") from error
    if measured != name or len(costs) != len(units):
        raise ValueError(f"it holds {measured} of {len(costs)} units, {name} of {len(units)} is needed")
    counted = tuple(replace(unit, costs=of_unit) for unit, of_unit in zip(units, costs, strict=True))
    return Measure(name, counted, dense, per_weight)
