"""The tables as files: for programs, for a repository, for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from ffprune_env.comparison.paper_tables.contents import PaperTable
from ffprune_env.comparison.paper_tables.grids import grids_of
from ffprune_env.comparison.paper_tables.measured import Measured
from ffprune_env.comparison.report.grids import Grid
from ffprune_env.comparison.report.page import html_table, page_of
from ffprune_env.comparison.report.tables import markdown_table
from ffprune_env.lm.replacing import replacing
from ffprune_env.run.strict_json import strict_json


def write_table(table: PaperTable, models: Sequence[Measured], folder: Path, command: str) -> str:
    """Writes a table as .json, .md and .html.

    Args:
        table: which.
        models: what was measured of each.
        folder: where to; it must exist.
        command: that makes it.

    Returns:
        The name of the files, without what is behind the dot.
    """
    name, grids = f"table-{table.number}", grids_of(table, models)
    page = f"Table {table.number} of the paper"
    contents = {
        "json": strict_json(_as_json(table, models, grids, command), indent=1),
        "md": "\n\n".join([f"# {page}", f"    {command}", *_sections(grids)]) + "\n",
        "html": page_of(page, [f"<h1>{page}</h1><pre><code>{escape(command)}</code></pre>", *_html(grids)]),
    }
    for suffix, content in contents.items():
        with replacing(folder / f"{name}.{suffix}") as scratch:
            scratch.write_text(content, encoding="utf-8")
    return name


def _sections(grids: Sequence[tuple[str, Grid]]) -> list[str]:
    return [f"## {title}\n\n{markdown_table(grid)}" for title, grid in grids]


def _html(grids: Sequence[tuple[str, Grid]]) -> list[str]:
    return [f"<section><h2>{escape(title)}</h2>{html_table(grid)}</section>" for title, grid in grids]


def _as_json(
    table: PaperTable, models: Sequence[Measured], grids: Sequence[tuple[str, Grid]], command: str
) -> dict[str, Any]:
    """The tables as they are printed, and the measurements behind them."""
    shown = [
        {
            "title": title,
            "columns": [column.title for column in grid.columns],
            "rows": [[{"text": entry.text, "detail": entry.detail} for entry in row] for row in grid.rows],
            "notes": grid.notes,
        }
        for title, grid in grids
    ]
    measured = {one.model: {"as searched": _cells(one, False), "other text": _cells(one, True)} for one in models}
    return {"table": table.number, "command": command, "shown": shown, "measured": measured}


def _cells(one: Measured, other: bool) -> dict[str, Any] | None:
    comparison = one.other if other else one.comparison
    return None if comparison is None else asdict(comparison)
