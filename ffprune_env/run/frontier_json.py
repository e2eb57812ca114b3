"""Figures as they were before strict JSON, which has no infinite numbers, was made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def as_measured(content: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`~ffprune_env.run.strict_json.strict_json` was given.

    Args:
        content: an object that was read, of any depth; ``non_finite`` in it names the numbers that were not finite.

    Returns:
        The same without ``non_finite``, where the null of a number that it names is infinite; other nulls stay None.
    """
    lost = content.get("non_finite", ())
    return {name: _restored(value, name in lost) for name, value in content.items() if name != "non_finite"}


def _restored(value: Any, lost: bool) -> Any:
    if isinstance(value, Mapping):
        return as_measured(value)
    if isinstance(value, list):
        return [_restored(item, lost) for item in value]
    return math.inf if value is None and lost else value
