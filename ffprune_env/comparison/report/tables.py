"""The tables of a report in Markdown and on the terminal."""

from __future__ import annotations

import re

from rich import box
from rich.table import Table
from rich.text import Text

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.findings import findings
from ffprune_env.comparison.report.grids import Grid, command_line, perplexity_grid, settings_items, zero_shot_grid
from ffprune_env.comparison.report.overview import overview_grid
from ffprune_env.comparison.report.rewarded import rewarded_grid
from ffprune_env.comparison.report.rows import target_sparsities

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&])")


def comparison_markdown(comparison: Comparison) -> str:
    """The whole report but its figures, in Markdown.

    Args:
        comparison: what was measured.
    """
    settings = [f"| {_escaped(key)} | {_escaped(value)} |" for key, value in settings_items(comparison)]
    parts = ["# Pruning methods compared", "\n".join(["| setting | value |", "|---|---|", *settings])]
    command = command_line(comparison)
    parts += [] if command is None else ["\n".join(f"    {line}" for line in command.splitlines())]
    parts += findings(comparison)
    for sparsity in target_sparsities(comparison):
        parts += [f"## σ = {sparsity:g}", markdown_table(perplexity_grid(comparison, sparsity))]
        further = (rewarded_grid(comparison, sparsity), zero_shot_grid(comparison, sparsity))
        parts += [markdown_table(grid) for grid in further if grid is not None]
    overview = overview_grid(comparison)
    parts += [] if overview is None else ["## All σ", markdown_table(overview)]
    return "\n\n".join(parts) + "\n"


def comparison_table(comparison: Comparison, sparsity: float) -> Table:
    """The columns that matter most at one sparsity, for the terminal.

    Args:
        comparison: what was measured.
        sparsity: σ that was asked for, one of the comparison's.
    """
    return terminal_table(perplexity_grid(comparison, sparsity), f"σ = {sparsity:g}")


def rewarded_table(comparison: Comparison, sparsity: float) -> Table | None:
    """What searches were rewarded for, on data that none of them saw, for the terminal; None if that is text alone.

    Args:
        comparison: what was measured.
        sparsity: σ that was asked for, one of the comparison's.
    """
    rewarded = rewarded_grid(comparison, sparsity)
    return None if rewarded is None else terminal_table(rewarded, f"rewarded, held out, σ = {sparsity:g}")


def overview_table(comparison: Comparison) -> Table | None:
    """Perplexities at all sparsities, for the terminal; None of a single one.

    Args:
        comparison: what was measured.
    """
    overview = overview_grid(comparison)
    return None if overview is None else terminal_table(overview, "all σ")


def terminal_table(grid: Grid, title: str) -> Table:
    """The columns of a table that have a short title, and its notes.

    Args:
        grid: the table.
        title: stands above it.
    """
    best = grid.best()
    chosen = [j for j, column in enumerate(grid.columns) if column.short]
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.caption, table.caption_justify = Text("\n".join(grid.notes).replace("`", "")), "left"
    for j in chosen:
        table.add_column(grid.columns[j].short, justify="right" if j else "left", overflow="fold")
    for i, row in enumerate(grid.rows):
        texts = []
        for j in chosen:
            text = Text(row[j].text, style="bold" if (i, j) in best else "")
            texts.append(text.append(f"\n{row[j].detail}", style="not bold dim") if row[j].detail else text)
        table.add_row(*texts, end_section=i == 0)
    return table


def markdown_table(grid: Grid) -> str:
    """A table and, as a list, its notes.

    Args:
        grid: the table.
    """
    best = grid.best()
    titles = [_escaped(column.title) for column in grid.columns]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for i, row in enumerate(grid.rows):
        texts = [f"**{_escaped(x.text)}**" if (i, j) in best else _escaped(x.text) for j, x in enumerate(row)]
        lines.append([f"{text} ({x.detail})" if x.detail else text for text, x in zip(texts, row, strict=True)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *(f"- {note}" for note in grid.notes)])


def _escaped(text: str) -> str:
    """Text on one line, in which Markdown reads no syntax."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
