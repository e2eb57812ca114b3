"""Where scripts print: results on a console that is wide enough, logging above them, what is wrong in one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from ffprune_env.cli.commands import as_called

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


def start_logging(console: Console, level: int = logging.INFO) -> None:
    """Sends what the library logs to a console; called once, by the script that was started.

    Args:
        console: where to.
        level: of what is said at least.
    """
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


def tell(console: Console, *lines: str) -> None:
    """Prints lines as they are, each whole, such as below a table.

    Args:
        console: where results go.
        lines: plain text.
    """
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_result(console: Console, tables: Iterable[Table], lines: Iterable[str], failure: str | None) -> int:
    """Prints what a person reads of a result, and what is wrong with it; returns the exit code, 1 if anything is.

    Args:
        console: where results go.
        tables: of figures.
        lines: below them.
        failure: one line, for stderr; None if nothing is wrong.
    """
    for table in tables:
        console.print(table)
    tell(console, *lines)
    return 0 if failure is None else fail(failure, 1)


def say(message: str) -> None:
    """Prints one line on stderr."""
    errors().print(escape(as_called(message, sys.argv[0])))


def fail(error: Exception | str, code: int, hint: str = "") -> int:
    """Says in one line on stderr what went wrong, with scripts as they are called here, and returns the exit code.

    Args:
        error: what went wrong.
        code: the exit code.
        hint: what can be done, put in brackets behind it.
    """
    line, hint = (escape(as_called(" ".join(words.split()), sys.argv[0])) for words in (str(error), hint))
    errors().print("[bold red]error:[/]", line, *([f"({hint})"] if hint else []))
    return code


def errors() -> Console:
    """A console on stderr, for one line or a bar; made anew, since stderr may be another file by now."""
    return Console(stderr=True, soft_wrap=True, highlight=False)
