"""Which windows of text serve which purpose: the plan that a search with these flags would follow.

    python evaluate/windows.py --text python-docs
    python evaluate/windows.py --text valid.txt --test-text test.txt --model smollm2-135m
    python evaluate/windows.py --text python-docs --init ffn-only --evaluations 96

Nothing is measured. No two rows but the first two share a token: these see the same text, and nothing that is chosen or
reported is measured on it.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from ffprune_env.cli.consoles import fail, start_logging, wide_console
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.limit_flags import LimitFlags
from ffprune_env.cli.model_flags import NameFlags, TrustFlags
from ffprune_env.cli.text_flags import TextFlags
from ffprune_env.lm.models import load_model
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.search.presets import RUN_PRESETS
from ffprune_env.search.settings import SearchSettings
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.plan_rows import PlanRow, plan_rows
from ffprune_env.texts.unseen_windows import load_unseen_windows
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.windows import NAMED_TEXTS, same_text

console = wide_console()


@dataclass(frozen=True)
class Args(TextFlags, SearchSettings, TrustFlags, NameFlags):
    """What a plan depends on: flags of train/ppo.py, with its defaults. What a search does not look at gets nothing."""


def main() -> int:
    """Prints the plan; returns the exit code."""
    args = read_flags(Args, __doc__, default=RUN_PRESETS["default"])
    start_logging(console, logging.WARNING)
    try:
        rows = plan(args)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    console.print(table(args, rows))
    return 0


def plan(args: Args) -> list[PlanRow]:
    """Loads the texts as a search does."""
    args.require_allowed()
    for flag, value in (
        ("--search-windows", args.search_windows),
        ("--curve-windows", args.curve_windows),
        ("--calibration-windows", args.calibration_windows),
    ):
        require_in_range(flag, value, 1)
    require_in_range("--seq-len", args.seq_len, 2)
    args.require_windows()
    args.require_texts()
    model, tokenizer = load_model(args.model, device="cpu", trust_remote_code=args.trust_remote_code)
    planned = load_planned_windows(model, tokenizer, args.text, args)
    test = args.load_test(model, tokenizer, args.bos)
    require_unseen(test, *planned.texts.values())
    try:
        seen = {**planned.texts, "test": test}
        limit = load_unseen_windows(model, tokenizer, args.text, seen, LimitFlags.limit_windows, args.bos)
    except ValueError:  # too short: a limit is refused there
        limit = None
    return plan_rows(planned, test, test_source(args.text, args.test_text), limit)


def test_source(text: str, test_text: str | None) -> str:
    """Where test text comes from, in words."""
    if test_text is None or same_text(text, test_text):
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
