"""The report as one HTML page that needs nothing else: no network, no script, no file beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.drawing import LOOK
from ffprune_env.comparison.report.figures import perplexity_figure, retention_figure, search_figure
from ffprune_env.comparison.report.findings import findings
from ffprune_env.comparison.report.grids import Grid, command_line, perplexity_grid, settings_items, zero_shot_grid
from ffprune_env.comparison.report.overview import overview_grid
from ffprune_env.comparison.report.rewarded import rewarded_grid
from ffprune_env.comparison.report.rows import target_sparsities
from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 2rem 4rem; max-width: 82rem; background: #fff; color: #1d2126;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.2rem; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .8rem; padding-top: 1rem; border-top: 1px solid #d5d9de; }
p, li { max-width: 50rem; }
ul { padding-left: 1.2rem; }
li { margin: .5rem 0; }
code { font: .92em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
p code, li code { background: #f0f2f4; padding: .08em .3em; border-radius: 3px; }
pre { background: #f5f6f8; margin: 1.4rem 0 0; padding: .8rem 1rem; border-radius: 4px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .7rem 1.5rem; margin: 0; }
dt { font-size: .8rem; color: #5a626b; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0; font-size: .9rem; line-height: 1.3;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { text-align: right; vertical-align: baseline; padding: .38rem .75rem; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; color: #3b424a; white-space: normal; vertical-align: bottom; max-width: 9.5rem;
  border-bottom: 1.5px solid #1d2126; }
tbody th { font-weight: 400; }
tbody tr { border-bottom: 1px solid #e4e7eb; }
tbody tr:first-child { border-bottom-color: #8a929c; color: #5a626b; }
td b { font-weight: 700; }
td small { display: block; font-size: .78rem; color: #5a626b; }
.notes { font-size: .82rem; color: #5a626b; margin: .4rem 0 1.6rem; padding: 0; list-style: none; }
.notes li { max-width: 62rem; margin: .15rem 0; }
figure { margin: 1rem 0 1.8rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .82rem; color: #5a626b; max-width: 62rem; margin-top: .4rem; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  html { font-size: 8.5pt; }
  body { padding: 0; max-width: none; }
  h2 { break-after: avoid; margin-top: 1.5rem; }
  figure, dl, .wide, .notes { break-inside: avoid; }
  .notes { break-before: avoid; }
  .wide { overflow: visible; }
}
"""


def comparison_page(comparison: Comparison) -> str:
    """The page, complete.

    Args:
        comparison: what was measured.
    """
    name = escape(str(comparison.settings.get("model", "")))
    title = f"Pruning methods compared{f' on {name}' if name else ''}"
    settings = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in settings_items(comparison))
    words = "".join(f"<li>{_prose(text)}</li>" for text in findings(comparison))
    command = command_line(comparison)
    code = "" if command is None else f"<pre><code>{escape(command)}</code></pre>"
    body = [
        f"<header><h1>{title}</h1><dl>{settings}</dl>{code}</header>",
        f"<section><h2>What the numbers say</h2><ul>{words}</ul></section>",
        *_perplexity_sections(comparison),
        *_figure_sections(comparison),
    ]
    return page_of(title, body)


def page_of(title: str, body: Sequence[str]) -> str:
    """A whole page that needs no other file.

    Args:
        title: of the page, as HTML.
        body: what is on it, as HTML.
    """
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}<title>{title}</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(body)}\n</body>\n</html>\n"
    )


def _perplexity_sections(comparison: Comparison) -> list[str]:
    caption = "Means over seeds, bars from the lowest to the highest seed. What is infinite stands beyond the edge."
    if len(target_sparsities(comparison)) > 1:
        caption += (
            " Dashed: without any search. At each sparsity methods are set a little apart, to be told from each other."
        )
    if any(cell.kept is None for cell in comparison.cells):
        caption += " Hollow: rebuilds the weights instead of removing groups, shown as it is in every panel."
    if fell_back := dict.fromkeys(cell.method for cell in comparison.cells if cell.fell_back):
        caption += (
            f" {', '.join(fell_back)}: not calibrated as asked for everywhere, see {FELL_BACK_MARK} in the tables."
        )
    figure = _figure(perplexity_figure(comparison), "perplexity", caption)
    sections = [f"<section><h2>Test perplexity</h2>{figure}</section>"]
    for sparsity in target_sparsities(comparison):
        grids = (
            perplexity_grid(comparison, sparsity),
            rewarded_grid(comparison, sparsity),
            zero_shot_grid(comparison, sparsity),
        )
        tables = "".join(html_table(grid) for grid in grids if grid is not None)
        sections.append(f"<section><h2>Results at σ = {sparsity:g}</h2>{tables}</section>")
    overview = overview_grid(comparison)
    sections += [] if overview is None else [f"<section><h2>Results at all σ</h2>{html_table(overview)}</section>"]
    return sections


def _figure_sections(comparison: Comparison) -> list[str]:
    sections = []
    searches = search_figure(comparison)
    if searches is not None:
        windows = comparison.settings.get("search_windows", "few")
        caption = (
            f"Perplexity of what each search would return, on the {windows} windows of search text of an evaluation, "
            "against tokens of search text that it was charged: means over seeds, bands from the lowest to the highest "
            "seed. Horizontal lines: methods that do not search. "
            "Searches are drawn by the best they measured; ppo and policy by the policy's mean, until they choose at "
            "the end. Curves that begin higher come in from above."
        )
        sections.append(f"<section><h2>Searches</h2>{_figure(searches, 'search', caption)}</section>")
    maps = []
    for i, sparsity in enumerate(target_sparsities(comparison)):
        figure = retention_figure(comparison, sparsity)
        if figure is not None:
            caption = f"σ = {sparsity:g}: fraction of its heads and channels that every layer keeps, first seed."
            maps.append(_figure(figure, f"retention{i}", f"{caption} Best test perplexity first."))
    if maps:
        sections.append(f"<section><h2>What every layer keeps</h2>{''.join(maps)}</section>")
    return sections


def html_table(grid: Grid) -> str:
    """An HTML table with its notes.

    Args:
        grid: the table.
    """
    best = grid.best()
    head = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in grid.columns)
    lines = []
    for i, row in enumerate(grid.rows):
        cells = [f'<th scope="row">{escape(row[0].text)}</th>']
        for j, entry in enumerate(row[1:], start=1):
            text = f"<b>{escape(entry.text)}</b>" if (i, j) in best else escape(entry.text)
            cells.append(f"<td>{text}{f'<small>{escape(entry.detail)}</small>' if entry.detail else ''}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table>"
    notes = "".join(f"<li>{_prose(note)}</li>" for note in grid.notes)
    return f'<div class="wide">{table}</div><ul class="notes">{notes}</ul>'


def _figure(figure: Figure, name: str, caption: str) -> str:
    return f"<figure>{inline_svg(figure, name)}<figcaption>{escape(caption)}</figcaption></figure>"


def inline_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element for the middle of a page.

    Args:
        figure: made with :data:`~ffprune_env.comparison.report.drawing.LOOK`.
        name: begins every id, so that figures of one page do not take each other's clip paths and glyphs.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": name}):  # the salt makes ids, and so the page, reproducible
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)


def _prose(text: str) -> str:
    """A sentence with names in backticks as HTML."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
