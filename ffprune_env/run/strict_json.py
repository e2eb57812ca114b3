"""JSON that any reader takes, and figures as they were before."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def strict_json(content: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON that any reader takes: a non-finite number becomes null, and ``non_finite`` names it beside it."""
    return json.dumps(_plain(content), indent=indent, allow_nan=False, ensure_ascii=False)


def as_measured(content: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`strict_json` was given.

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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
        lost = [str(key) for key, item in value.items() if _is_lossy(item)]
        return {**plain, "non_finite": lost} if lost else plain
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _is_lossy(value: Any) -> bool:
    """Whether a number, or one in a list or array, is not finite."""
    if isinstance(value, np.ndarray | list | tuple):
        return any(_is_lossy(item) for item in np.asarray(value, dtype=object).ravel().tolist())
    return isinstance(value, float) and not math.isfinite(value)
