"""Which windows of text serve which purpose: the plan that a search with these flags would follow.

    python evaluate/windows.py --text python-docs
    python evaluate/windows.py --text valid.txt --test-text test.txt --model smollm2-135m

Nothing is measured. No two rows but the first two share a token: these see the same text, and nothing that is chosen or
reported is measured on it.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from ffprune_env.cli.consoles import wide_console
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import require_in_range
from ffprune_env.lm.models import load_model
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import PlanRow, load_planned_windows, plan_rows
from ffprune_env.texts.windows import NAMED_TEXTS, load_test_windows

console = wide_console()


@dataclass(frozen=True)
class Args:
    """What a plan depends on; every field is a flag, with the default of train/ppo.py."""

    text: str = "python-docs"
    """search and calibration text"""
    test_text: str | None = None
    """test text; by default the test part of --text"""
    model: str = "smollm2-135m"
    """whose tokens are counted, and whose context windows must fit in"""
    trust_remote_code: bool = False
    """run Python code that a checkpoint brings along"""
    seq_len: int = 1024
    """tokens per window of search and calibration text"""
    samples: int = 2
    """windows of search text per evaluation"""
    final_samples: int = 8
    """further ones, for finalists"""
    curve_windows: int = 16
    """further ones, for damage curves"""
    calibration_windows: int = 96
    """windows of calibration text, or all there are if those are fewer"""
    test_seq_len: int = 2048
    """tokens per window of test text"""
    test_windows: int | None = 8
    """windows of test text, from its beginning; None takes all"""


def main() -> int:
    """Prints the plan; returns the exit code."""
    args = read_flags(Args, __doc__)
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    try:
        rows = plan(args)
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print("[bold red]error:[/]", escape(str(error)))
        return 2
    console.print(table(args, rows))
    return 0


def plan(args: Args) -> list[PlanRow]:
    """Loads the texts as a search does."""
    for flag, value in (
        ("--samples", args.samples),
        ("--final-samples", args.final_samples),
        ("--curve-windows", args.curve_windows),
        ("--calibration-windows", args.calibration_windows),
        ("--test-windows", args.test_windows),
    ):
        require_in_range(flag, value, 1)
    model, tokenizer = load_model(args.model, device="cpu", trust_remote_code=args.trust_remote_code)
    planned = load_planned_windows(
        model,
        tokenizer,
        args.text,
        seq_len=args.seq_len,
        samples=args.samples,
        final_samples=args.final_samples,
        curve_windows=args.curve_windows,
        calibration_windows=args.calibration_windows,
    )
    test = load_test_windows(args.text, args.test_text, tokenizer, args.test_seq_len, args.test_windows, model=model)
    require_unseen(test, *planned.texts.values())
    return plan_rows(planned, test, test_source(args.text, args.test_text))


def test_source(text: str, test_text: str | None) -> str:
    """Where test text comes from, in words."""
    if test_text is None or Path(test_text).resolve() == Path(text).resolve():
        return f"{text}, test part"
    return f"{test_text}, {'test part' if test_text in NAMED_TEXTS else 'all of it'}"


def table(args: Args, rows: list[PlanRow]) -> Table:
    """A row per purpose."""
    report = Table(title=escape(f"Windows of a search on {args.text}, in tokens of {args.model}"))
    for column in ("purpose", "text", "windows", "tokens", "which", "seen by"):
        report.add_column(column, justify="right" if column in ("windows", "tokens") else "left", overflow="fold")
    for row in rows:
        numbers = (f"{row.windows}", f"{row.tokens:,}")
        report.add_row(row.purpose, escape(row.text), *numbers, row.which, row.seen_by)
    return report


if __name__ == "__main__":
    sys.exit(main())
