"""The frontier as one HTML page that needs nothing else: no network, no script, no file beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 78rem; background: #fff; color: #1d2126;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .8rem; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(3), td:nth-child(3), td:last-child { text-align: left; }
thead th { border-bottom: 1.5px solid #1d2126; }
tbody tr { border-bottom: 1px solid #e4e7eb; }
p, li { max-width: 50rem; }
"""


def frontier_page(
    figure: Figure, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """A whole page: the picture, the table that it is drawn from, and what to know of it.

    Args:
        figure: the picture.
        title: of the page.
        columns: of the table.
        rows: a word for each column.
        notes: sentences below the table.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    below = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n<figure>{_inline(figure)}</figure>\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
        f"<ul>\n{below}\n</ul>\n</body>\n</html>\n"
    )


def _inline(figure: Figure) -> str:
    import matplotlib as mpl

    drawn = io.StringIO()
    # Without a date and with fixed names of parts, the same figures give the same page.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "frontier"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
