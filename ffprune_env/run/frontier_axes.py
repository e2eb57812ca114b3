"""Axes of perplexity, as both pictures of a frontier have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def log_scale(axes: Axes, marks: Sequence[float]) -> None:
    """Lets perplexities that are far apart all be seen; the numbers beside the axis stay plain ones.

    Args:
        axes: of the picture.
        marks: which multiples of the powers of ten have a number.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=tuple(marks)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def light_frame(axes: Axes, size: int) -> None:
    """A pale grid, and a frame that is open at the top and at the right.

    Args:
        axes: of the picture.
        size: of the numbers beside them, in points.
    """
    axes.tick_params(labelsize=size)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def mark_fallen_back(axes: Axes, places: Sequence[tuple[float, float]], size: int) -> None:
    """Marks models that are not calibrated as was asked for, as tables do, and says in the legend what the mark means.

    Args:
        axes: of the picture.
        places: of the models on it; none where all are calibrated alike.
        size: of the mark, in points.
    """
    for place in places:
        axes.annotate(
            FELL_BACK_MARK, place, xytext=(9, 7), textcoords="offset points", fontsize=size, weight="bold", ha="left"
        )
    if places:
        axes.plot([], [], linestyle="", label=f"{FELL_BACK_MARK} calibrated by Eqs. 6-7 alone")
