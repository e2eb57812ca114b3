"""Settings within their bounds."""

from __future__ import annotations

import math


def require_in_range(flag: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Raises ValueError, in the words of the command line, unless a setting is None or within its bounds."""
    if value is not None and not least <= value <= most:
        allowed = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise ValueError(f"{flag} must be {allowed}, got {value}")
