"""Numbers of windows as messages have them."""

from __future__ import annotations


def windows_in_words(n: int) -> str:
    """How many windows, such as ``1 window`` or ``8 windows``."""
    return f"{n} window{'s' if n > 1 else ''}"
