"""The frontier of a run as a picture: perplexity against the size of the weights, a line for every policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ffprune_env.run.frontier import ALONE, Point
from ffprune_env.run.frontier_axes import light_frame, log_scale, mark_fallen_back
from ffprune_env.run.results import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What is drawn, from the back to the front, and how: colours that the colour-blind can tell apart.
_LINES = {"uniform": ("#999999", "s"), "ffn-only": ("#0072B2", "^"), "chosen": ("#D55E00", "o")}
#: Perplexities of so many times the dense model's leave nothing to see of the others, unless they are on a log scale.
_STEEP = 4
_LEAST_APART = 0.07  # of names, as a part of the height
_SMALLEST_TYPE = 17  # points, on eight inches: legible at half the width of a phone


def frontier_plot(points: Sequence[Point], model: str, text: str) -> Figure:
    """Draws the models of a run; every line is named where it ends.

    Args:
        points: what there is; what has no finite perplexity is left out.
        model: name of the dense model, for the title.
        text: what perplexity was measured on, for the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    points = [point for point in points if math.isfinite(point.test_ppl)]
    dense = [point for point in points if point.policy == "dense"]
    if any(point.test_ppl > _STEEP * dense[0].test_ppl for point in points if dense):
        log_scale(axes, (1, 2, 3, 5))
    ends = _draw_lines(axes, points, dense)
    _draw_alone(axes, [point for point in points if point.policy == ALONE])
    mark_fallen_back(axes, [(x.size, x.test_ppl) for x in points if x.fell_back], _SMALLEST_TYPE)
    if not all(str(line.get_label()).startswith("_") for line in axes.get_lines()):
        axes.legend(loc="upper right", fontsize=_SMALLEST_TYPE, frameon=False)
    _draw_dense(axes, dense)
    axes.margins(y=0.1)
    axes.autoscale_view()
    _name_lines(axes, ends)
    left, right = axes.get_xlim()
    axes.set_xlim(left - 0.26 * (right - left), right)  # room for the names
    axes.set_title(f"{model}, pruned", fontsize=_SMALLEST_TYPE + 3)
    axes.set_xlabel("size of the weights, MiB", fontsize=_SMALLEST_TYPE)
    axes.set_ylabel(f"perplexity ({text})", fontsize=_SMALLEST_TYPE)
    light_frame(axes, _SMALLEST_TYPE)
    return figure


def _draw_lines(axes: Axes, points: Sequence[Point], dense: Sequence[Point]) -> dict[str, Point]:
    """A line from the dense model on for every policy; returns where each ends."""
    ends: dict[str, Point] = {}
    for policy, (colour, marker) in _LINES.items():
        own = sorted((point for point in points if point.policy == policy), key=lambda point: point.sparsity)
        if not own:
            continue
        line = [*dense, *own]
        axes.plot([x.size for x in line], [x.test_ppl for x in line], color=colour, linewidth=3)
        for later in (False, True):
            these = [point for point in own if point.later == later]
            axes.plot(
                [x.size for x in these], [x.test_ppl for x in these], color=colour, marker=marker, linestyle="", ms=9,
                markerfacecolor="white" if later else colour, markeredgewidth=2,
                label="asked for later" if later and these and policy == "chosen" else None,
            )  # fmt: skip
        ends[policy] = own[-1]
    return ends


def _draw_alone(axes: Axes, alone: Sequence[Point]) -> None:
    """Marks for searches of one σ each."""
    if alone:
        axes.plot(
            [x.size for x in alone], [x.test_ppl for x in alone], color="#009E73", marker="*", linestyle="", ms=18,
            label=f"a search for {ALONE}",
        )  # fmt: skip


def _draw_dense(axes: Axes, dense: Sequence[Point]) -> None:
    """The dense model, with its name."""
    for x in dense:
        axes.plot(x.size, x.test_ppl, marker="D", ms=12, color="black")
        axes.annotate(
            "dense", (x.size, x.test_ppl), fontsize=_SMALLEST_TYPE + 2, weight="bold", xytext=(-14, -14),
            textcoords="offset points", ha="right", va="center",
        )  # fmt: skip


def _name_lines(axes: Axes, ends: Mapping[str, Point]) -> None:
    """Puts names beside the ends of lines, as soon as the limits of the axes are known."""
    to_part = axes.transData + axes.transAxes.inverted()
    heights = _apart([float(to_part.transform((end.size, end.test_ppl))[1]) for end in ends.values()])
    for (policy, end), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            label(policy), (end.size, height), xycoords=axes.get_xaxis_transform(), color=_LINES[policy][0],
            fontsize=_SMALLEST_TYPE + 2, weight="bold", xytext=(-10, 0), textcoords="offset points", ha="right",
            va="center",
        )  # fmt: skip


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights near those that were given, far enough apart that names there do not meet."""
    found = list(heights)
    order = sorted(range(len(found)), key=lambda i: found[i])
    for _ in range(10 * len(found)):
        for below, above in pairwise(order):
            missing = _LEAST_APART - (found[above] - found[below])
            if missing > 0:
                found[below], found[above] = found[below] - missing / 2, found[above] + missing / 2
    return found
