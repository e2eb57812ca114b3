"""The command ``ffprune``: the scripts of train/ and evaluate/ by name, for who has no checkout of them."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ffprune_env import __version__
from ffprune_env.cli.commands import COMMANDS, PROGRAM
from ffprune_env.cli.consoles import fail


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command as if its script had been called; returns the exit code of what it does itself.

    Args:
        argv: the name of a command and its arguments; None takes the command line's.

    Raises:
        SystemExit: with its exit code, when the script has ended.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h"):
        _list_commands()
        return 0
    name, *arguments = words
    if name == "--version":
        Console(highlight=False).print(f"{PROGRAM} {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS)
        meant = f"perhaps {' or '.join(near)}; " if near else ""
        return fail(f"there is no command {name!r}; {meant}{PROGRAM} --help lists all", 2)
    sys.argv = [f"{PROGRAM} {name}", *arguments]
    _run(COMMANDS[name].file)
    return 0


def _run(script: Path) -> None:
    """Runs a script as the main module; unlike runpy it leaves the name that the script is called by as it is.

    The module says by its file, and not by a spec, what processes that it starts have to import first.
    """
    spec = importlib.util.spec_from_file_location("__main__", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__spec__ = None
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["__main__"] = before


def _list_commands() -> None:
    table = Table.grid(padding=(0, 3))
    for name, command in COMMANDS.items():
        table.add_row(f"  [bold]{name}[/]", escape(command.help))
    console = Console(highlight=False)
    console.print(f"{PROGRAM} <command> ...: finds how much of each layer of a language model to keep, and prunes it\n")
    console.print(table)
    console.print(f"\n{PROGRAM} <command> --help lists the flags of a command, {PROGRAM} --version says which this is.")


if __name__ == "__main__":
    sys.exit(main())
