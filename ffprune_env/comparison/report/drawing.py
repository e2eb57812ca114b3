"""How figures of a report look: a style per method, points with their range over seeds, axes and legends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.rows import Row, Spread, methods

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Settings of matplotlib that every figure is made and written with.
LOOK: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e4e7eb", "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.edgecolor": "#8a929c",
    "xtick.color": "#3b424a", "ytick.color": "#3b424a", "text.color": "#1d2126", "axes.labelcolor": "#1d2126",
    "lines.markersize": 5.5, "lines.linewidth": 1.5, "legend.frameon": False, "svg.fonttype": "none",
    "text.parse_math": False,  # names come from outside
}  # fmt: skip
DENSE_DASH = (0, (6, 4))
# The numbers of colours and of markers have no common divisor: 132 methods before a pair comes again.
_COLORS = (
    "#1f6fb4", "#d1495b", "#2a9d63", "#e08e0b", "#7b4fb5", "#0f9fb0", "#8c5a3c", "#d65db1", "#5c6370", "#97a31c",
    "#1b2a6b",
)  # fmt: skip
_MARKERS = "osD^vPX<>*ph"
# Beyond this ratio of the largest to the smallest perplexity an axis is logarithmic.
_LOG_RATIO = 4.0


@dataclass(frozen=True)
class Style:
    """How a method is drawn, in every figure."""

    color: str
    marker: str
    dash: str
    fill: str

    def line(self) -> dict[str, Any]:
        """Arguments for a line of matplotlib."""
        return {"linestyle": self.dash, **self.point()}

    def point(self) -> dict[str, Any]:
        """Arguments for a marker of matplotlib."""
        return {"color": self.color, "marker": self.marker, "markerfacecolor": self.fill}


def method_styles(comparison: Comparison) -> dict[str, Style]:
    """A style for every method: colour and marker by its place in the comparison, dashes and filling by its kind."""
    styles = {}
    for i, method in enumerate(methods(comparison)):
        row = Row(method, tuple(cell for cell in comparison.cells if cell.method == method))
        color = _COLORS[i % len(_COLORS)]
        dash = ":" if row.rebuilds else "--" if row.heuristic else "-"
        styles[method] = Style(color, _MARKERS[i % len(_MARKERS)], dash, "white" if row.rebuilds else color)
    return styles


def draw_points(
    axes: Axes, places: npt.ArrayLike, spreads: Sequence[Spread], style: Style, upright: bool = True
) -> list[float]:
    """Draws means, joined by a line, with bars from the lowest to the highest seed.

    What is not finite is drawn at the far edge of the axes and called by its name.

    Args:
        axes: to draw on.
        places: [n], where on the other axis.
        spreads: n perplexities.
        style: of the method.
        upright: whether perplexity runs upwards; else to the right.

    Returns:
        The finite perplexities that were drawn, for :func:`perplexity_axis`.
    """
    at = np.asarray(places, dtype=np.float64)
    mean, low, high = (np.array([getattr(x, name) for x in spreads]) for name in ("mean", "low", "high"))
    finite = np.isfinite(mean)
    # The mean of equal numbers may be a last digit beside them.
    bars = np.array([mean[finite] - low[finite], high[finite] - mean[finite]]).clip(min=0)
    look = {**style.line(), "elinewidth": 1.2, "capsize": 2}
    if upright and finite.any():
        axes.errorbar(at[finite], mean[finite], yerr=bars, **look)
    elif finite.any():
        axes.errorbar(mean[finite], at[finite], xerr=bars, **look)
    for place, value in zip(at[~finite], mean[~finite], strict=True):
        draw_beyond(axes, place, f"{value}", style, upright)
    return [*low[finite], *high[finite]]


def draw_beyond(axes: Axes, place: float, text: str, style: Style, upright: bool = True) -> None:
    """Marks what no axis can show beyond the edge where the perplexities grow, and says what it is."""
    transform = axes.get_xaxis_transform() if upright else axes.get_yaxis_transform()
    point = (place, 1.05) if upright else (1.03, place)
    axes.plot(*([x] for x in point), transform=transform, clip_on=False, **style.point())
    if not upright:
        axes.annotate(text, point, (6, 0), xycoords=transform, textcoords="offset points", va="center")
    elif text not in (label.get_text() for label in axes.texts):  # once, in line with the numbers of the axis
        at, offset, side = (0, -7, "right") if text == "inf" else (1, 7, "left")
        axes.annotate(text, (at, 1.05), (offset, 0), "axes fraction", "offset points", ha=side, va="center")


def perplexity_axis(axes: Axes, values: Sequence[float], upright: bool = True) -> None:
    """Makes the axis of perplexities logarithmic where its values ask for it, with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [x for x in values if math.isfinite(x) and x > 0]
    ratio = max(finite) / min(finite) if finite else 1.0
    axis = axes.yaxis if upright else axes.xaxis
    if ratio > _LOG_RATIO:
        (axes.set_yscale if upright else axes.set_xscale)("log")
        axis.set_major_locator(
            LogLocator(subs=(1, 2, 3, 5) if ratio < 30 else (1, 2, 5) if ratio < 1e4 else (1,), numticks=20)
        )
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}" if x < 1e6 else f"{x:.0e}"))


def draw_legend(figure: Figure, styles: Mapping[str, Style], dense: bool = False) -> None:
    """Puts the legend of all panels beside them."""
    from matplotlib.lines import Line2D

    handles: list[Artist] = [Line2D([], [], **style.line()) for style in styles.values()]
    if dense:
        handles.append(Line2D([], [], color="black", linestyle=DENSE_DASH, linewidth=1))
    labels = [*styles, *["dense"] * dense]
    figure.legend(handles, labels, loc="outside right upper", handlelength=3.2, labelspacing=0.7)
