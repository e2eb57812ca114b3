"""Where scripts print: no table so narrow that it loses its figures, whatever a terminal or its absence claims."""

from __future__ import annotations

import os

from rich.console import Console

# The widest table of figures needs so many columns; a terminal that has fewer wraps its lines.
_LEAST = 80
# A log file has no width. Lines of phases are whole in it.
_IN_A_FILE = 120


def wide_console() -> Console:
    """A console for results: as wide as the terminal or COLUMNS says, but never less than 80 columns."""
    console = Console()
    said = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    least = _LEAST if said else _IN_A_FILE
    return console if console.width >= least else Console(width=least)
