"""Perplexity against size and against speed, of files that people can serve: pruned and dense, in several types."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from ffprune_env.run.frontier import ALONE, Point
from ffprune_env.run.frontier_axes import light_frame, log_scale, mark_fallen_back
from ffprune_env.run.frontier_files import BASE, DENSE, FilePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the largest type to the smallest; colours that the colour-blind can tell apart. There are twice as many types, so
# each colour comes back with another marker.
_COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "v", "P", "X", "D", "<", ">", "p", "h", "d")
# Perplexities of so many times the lowest leave nothing to see of the others, unless they are on a log scale.
_STEEP = 2.5
# Where so many files are drawn, not every σ can be written beside its mark.
_MANY = 6
_TYPE = 14
_IN_A_ROW = 7  # of the legend: more names than that are wider than the picture


def files_plot(
    points: Sequence[FilePoint],
    model: str,
    text: str,
    beside: Sequence[Point] = (),
    marked: Collection[str] = (),
) -> Figure:
    """Draws files, a line for each type from the dense model on.

    Args:
        points: what was measured; the dense model in some types among it. What has no finite perplexity is left out.
        model: name of the dense model, for the title.
        text: what perplexity was measured on, for the axis.
        beside: models of the run that were measured and not written, drawn against the size of their weights.
        marked: the models among ``points`` that are not calibrated as was asked for.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    points = [point for point in points if math.isfinite(point.ppl)]
    kinds = list(dict.fromkeys(point.kind for point in points))
    for axes, along in ((left, _mebibytes), (right, _speed)):
        for kind, colour, marker in zip(kinds, cycle(_COLOURS), cycle(_MARKERS), strict=False):
            own = sorted((x for x in points if x.kind == kind), key=lambda x: x.sparsity)
            _draw_line(axes, own, along, colour, marker, kind.upper())
        places = [(along(x), x.ppl) for x in points if x.model in marked]
        if axes is left:
            places += [(x.size, x.test_ppl) for x in beside if x.fell_back and math.isfinite(x.test_ppl)]
        mark_fallen_back(axes, places, _TYPE)
        light_frame(axes, _TYPE - 1)
        axes.margins(0.16, 0.13)
    _draw_beside(left, beside)
    ppls = [point.ppl for point in points]
    if ppls and max(ppls) > _STEEP * min(ppls):
        log_scale(left, (1, 1.5, 2, 3, 5, 7))
    left.set_xlabel("size of the file, MiB: smaller is better", fontsize=_TYPE)
    right.set_xlabel(f"tokens per second in a decode, dense {BASE.upper()} = 1: more is better", fontsize=_TYPE)
    left.set_ylabel(f"perplexity ({text}): lower is better", fontsize=_TYPE)
    handles = [line for line in left.get_lines() if not str(line.get_label()).startswith("_")]
    if handles:
        columns = min(len(handles), _IN_A_ROW)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=_TYPE, frameon=False)
    figure.suptitle(f"{model} in llama.cpp: dense (large marks), and pruned (numbers: σ)", fontsize=_TYPE + 3)
    return figure


def _draw_line(
    axes: Axes, own: Sequence[FilePoint], along: Callable[[FilePoint], float], colour: str, marker: str, name: str
) -> None:
    places = [along(x) for x in own]
    axes.plot(places, [x.ppl for x in own], color=colour, marker=marker, ms=7, linewidth=2, label=name)
    for place, x in zip(places, own, strict=True):
        if x.model == DENSE:
            axes.plot(place, x.ppl, color=colour, marker=marker, ms=14, markeredgecolor="black", markeredgewidth=1.5)
            axes.annotate(
                f"dense {name}", (place, x.ppl), xytext=(0, -21), textcoords="offset points", fontsize=_TYPE - 2,
                color=colour, ha="center", weight="bold",
            )  # fmt: skip
        elif len(own) <= _MANY or x in (own[-1], own[len(own) // 2]):
            axes.annotate(
                f"{x.sparsity:.2g}", (place, x.ppl), xytext=(7, 5), textcoords="offset points", fontsize=_TYPE - 3,
                color=colour,
            )  # fmt: skip


def _draw_beside(axes: Axes, beside: Sequence[Point]) -> None:
    """What the run measured itself, in transformers: models that nobody has written, and searches for one σ alone."""
    beside = [x for x in beside if math.isfinite(x.test_ppl)]
    chosen = sorted((x for x in beside if x.policy in ("chosen", "dense")), key=lambda x: x.sparsity)
    if len(chosen) > 1:
        axes.plot(
            [x.size for x in chosen], [x.test_ppl for x in chosen], color="#999999", linestyle=":", marker=".",
            label="as the run measured them", zorder=0,
        )  # fmt: skip
    alone = [x for x in beside if x.policy == ALONE]
    if alone:
        axes.plot(
            [x.size for x in alone], [x.test_ppl for x in alone], color="black", linestyle="", marker="*", ms=12,
            label=f"a search for {ALONE}",
        )  # fmt: skip


def _mebibytes(point: FilePoint) -> float:
    return point.size / 2**20


def _speed(point: FilePoint) -> float:
    return point.decode.ratio
