"""Figures of a report: perplexity against sparsity, the searches, and what every method keeps of every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.drawing import (
    DENSE_DASH,
    LOOK,
    Style,
    draw_beyond,
    draw_legend,
    draw_points,
    method_styles,
    perplexity_axis,
)
from ffprune_env.comparison.report.rows import Row, find, methods, rows_at, target_sparsities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine


_WIDTH = 12.0  # inches
_CURVE_POINTS = 200
# Beyond this ratio of the longest search to the shortest, tokens are on a logarithmic axis.
_LOG_TOKENS = 30.0


def perplexity_figure(comparison: Comparison) -> Figure:
    """Test perplexity against sparsity, without and, where there is one, with calibration.

    A single sparsity makes no line: its methods stand below each other instead, best first.
    """
    import matplotlib
    from matplotlib.figure import Figure

    sparsities, styles = target_sparsities(comparison), method_styles(comparison)
    lines = len(sparsities) > 1
    panels = 2 if any(cell.calibrated_test_ppl is not None for cell in comparison.cells) else 1
    height = max(4.6, 0.6 + 0.24 * len(styles)) if lines else 1.2 + 0.28 * len(styles)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(_WIDTH, height), layout=_layout())
        for final, axes in enumerate(figure.subplots(1, panels, squeeze=False, sharey=not lines)[0]):
            axes.set_title("with calibration" if final else "without calibration", loc="left", pad=20)
            (_sparsity_panel if lines else _ranking_panel)(axes, comparison, styles, bool(final))
        if lines:
            draw_legend(figure, {name: styles[name] for name in _worst_first(comparison)}, dense=True)
    return figure


def search_figure(comparison: Comparison) -> Figure | None:
    """Perplexity of what every search would return, on the windows of an evaluation, against tokens charged.

    None without searches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not any(cell.trace for cell in comparison.cells):
        return None
    sparsities, styles = target_sparsities(comparison), method_styles(comparison)
    columns = min(2, len(sparsities))
    lines = math.ceil(len(sparsities) / columns)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(_WIDTH, max(0.4 + 3.8 * lines, 0.6 + 0.24 * len(styles))), layout=_layout())
        panels = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes in panels[len(sparsities) :]:
            axes.remove()
        shown: set[str] = set()
        for axes, sparsity in zip(panels, sparsities, strict=False):
            axes.set_title(f"σ = {sparsity:g}", loc="left", pad=20)
            shown |= _search_panel(axes, rows_at(comparison, sparsity), styles)
        draw_legend(figure, {name: styles[name] for name in _worst_first(comparison) if name in shown})
    return figure


def retention_figure(comparison: Comparison, sparsity: float) -> Figure | None:
    """Fraction of its groups that every layer keeps, by method (its first seed); None if no method removes groups."""
    import matplotlib
    from matplotlib.figure import Figure

    first = {row.method: row.cells[0].kept for row in rows_at(comparison, sparsity)}
    kept = {method: counts for method, counts in first.items() if counts is not None}
    if not kept:
        return None
    counts = np.array(list(kept.values()), dtype=np.float64)  # [methods, units]
    rates = counts / np.array([unit["n_groups"] for unit in comparison.units], dtype=np.float64)
    bare: dict[Any, Any] = {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}
    with matplotlib.rc_context({**LOOK, **bare}):
        figure = Figure(figsize=(_WIDTH, max(1.6, 1.1 + 0.26 * len(kept))), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, kind, title in zip(panels, ("attention", "ffn"), ("attention heads", "FFN channels"), strict=True):
            chosen = [i for i, unit in enumerate(comparison.units) if unit["kind"] == kind]
            # With "none" the browser scales an image of one pixel per layer: sharp, and small in the file.
            image = axes.imshow(rates[:, chosen], aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="none")
            axes.hlines(np.arange(len(kept) - 1) + 0.5, -0.5, len(chosen) - 0.5, color="white", linewidth=2)
            axes.set_title(f"{title} kept", loc="left")
            axes.set_xlabel("decoder layer")
            axes.set_yticks(range(len(kept)), list(kept))
            axes.locator_params(axis="x", nbins=12, integer=True)
            axes.tick_params(length=0)
        figure.colorbar(image, ax=panels, label="fraction kept", ticks=[0, 0.25, 0.5, 0.75, 1], pad=0.01)
    return figure


def _layout() -> ConstrainedLayoutEngine:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(wspace=0.04, hspace=0.06)


def _worst_first(comparison: Comparison) -> list[str]:
    """All methods, in the order in which they end at the highest sparsity, from top to bottom."""
    last = reversed(rows_at(comparison, target_sparsities(comparison)[-1]))
    return list(dict.fromkeys([*(row.method for row in last), *methods(comparison)]))


def _sparsity_panel(axes: Axes, comparison: Comparison, styles: Mapping[str, Style], final: bool) -> None:
    """A line per method over sparsity.

    Methods stand a little apart at each sparsity, so that their ranges over seeds do not hide each other.
    """
    sparsities = target_sparsities(comparison)
    tables = {sparsity: rows_at(comparison, sparsity) for sparsity in sparsities}
    gap = min(np.diff(sparsities))
    values = [comparison.dense_test_ppl]
    for shift, (method, style) in zip(np.linspace(-0.16, 0.16, len(styles)) * gap, styles.items(), strict=True):
        found = {s: row for s in sparsities if (row := find(tables[s], method)) is not None}
        spreads = [row.final if final else row.plain for row in found.values()]
        values += draw_points(axes, np.array(list(found)) + shift, spreads, style)
    axes.axhline(comparison.dense_test_ppl, color="black", linestyle=DENSE_DASH, linewidth=1)
    axes.set_xticks(sparsities, [f"{x:g}" for x in sparsities])
    axes.set_xlim(sparsities[0] - 0.4 * gap, sparsities[-1] + 0.4 * gap)
    axes.set(xlabel="target sparsity σ", ylabel="test perplexity")
    axes.grid(axis="x", visible=False)
    perplexity_axis(axes, values)


def _ranking_panel(axes: Axes, comparison: Comparison, styles: Mapping[str, Style], final: bool) -> None:
    """Methods at the only sparsity below each other, best final perplexity first."""
    rows = rows_at(comparison, target_sparsities(comparison)[0])
    values = [comparison.dense_test_ppl]
    for i, row in enumerate(rows):
        values += draw_points(axes, [i], [row.final if final else row.plain], styles[row.method], upright=False)
    axes.axvline(comparison.dense_test_ppl, color="black", linestyle=DENSE_DASH, linewidth=1)
    axes.annotate(
        "dense", (comparison.dense_test_ppl, 1), (0, 3), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", ha="center", fontsize=8,
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("test perplexity")
    perplexity_axis(axes, values, upright=False)


def _search_panel(axes: Axes, rows: Sequence[Row], styles: Mapping[str, Style]) -> set[str]:
    """A curve per search and a line per method that left none; returns the methods drawn."""
    from matplotlib.ticker import EngFormatter

    levels: dict[str, float] = {}  # where every method ends
    ends = []
    for row in rows:
        traces = [cell.trace for cell in row.cells if cell.trace]
        others = [cell.search_ppl for cell in row.cells if cell.search_ppl is not None]
        if traces:
            tokens, curve = mean_curve(traces)
            levels[row.method] = float(curve[0, -1])
            ends.append(float(tokens[-1]))
            _draw_curve(axes, tokens, curve, styles[row.method], first_marker=0.03 * len(ends) % 0.25)
        elif others:
            levels[row.method] = float(np.mean(others))
            _draw_level(axes, levels[row.method], styles[row.method])
    if ends and max(ends) > _LOG_TOKENS * min(ends):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    finite = [x for x in levels.values() if math.isfinite(x)]
    if finite:
        # Curves come in from above: where they end is what has to be told apart.
        room = max(max(finite) / min(finite), 1.02) ** 0.25
        axes.set_ylim(min(finite) / room, max(finite) * room)
    perplexity_axis(axes, finite)
    beyond = [method for method, level in levels.items() if not math.isfinite(level)]
    for i, method in enumerate(beyond):
        draw_beyond(axes, max(ends, default=1) * (1 - 0.05 * i), f"{levels[method]}", styles[method])
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set(xlabel="tokens of search text charged", ylabel="perplexity on search text")
    return set(levels)


def _draw_curve(axes: Axes, tokens: FloatArray, curve: FloatArray, style: Style, first_marker: float) -> None:
    finite = np.isfinite(curve).all(axis=0)
    if not finite.any():
        return
    tokens, (mean, low, high) = tokens[finite], curve[:, finite]
    axes.step(tokens, mean, where="post", markevery=(first_marker, 0.25), **style.line())
    axes.fill_between(tokens, low, high, step="post", color=style.color, alpha=0.15, linewidth=0)


def _draw_level(axes: Axes, level: float, style: Style) -> None:
    if math.isfinite(level):
        axes.axhline(level, color=style.color, linestyle=style.dash, linewidth=1.2)
        edge = axes.get_yaxis_transform()
        axes.plot([1], [level], transform=edge, clip_on=False, **style.point())


def mean_curve(traces: Sequence[Sequence[tuple[int, float]]]) -> tuple[FloatArray, FloatArray]:
    """Mean, lowest and highest of what several searches would return, from where all have something to return.

    Args:
        traces: per seed, pairs of tokens charged and perplexity; each holds until the next, the last for good.

    Returns:
        [n] tokens, n at most 200, and [3, n] perplexities.
    """
    steps = [np.array(trace, dtype=np.float64).T for trace in traces]
    tokens = np.unique(np.concatenate([at for at, _ in steps]))
    tokens = tokens[tokens >= max(at[0] for at, _ in steps)]
    if len(tokens) > _CURVE_POINTS:
        tokens = tokens[np.linspace(0, len(tokens) - 1, _CURVE_POINTS).round().astype(np.int64)]
    values = np.stack([ppl[np.searchsorted(at, tokens, side="right") - 1] for at, ppl in steps])
    return tokens, np.stack([values.mean(axis=0), values.min(axis=0), values.max(axis=0)])
