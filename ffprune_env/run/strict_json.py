"""JSON that any reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def strict_json(content: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON that any reader takes: a non-finite number becomes null, and ``non_finite`` names it beside it."""
    return json.dumps(_plain(content), indent=indent, allow_nan=False, ensure_ascii=False)


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
