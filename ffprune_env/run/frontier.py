"""Perplexity against the size of the file, over the sparsities of a run: what a search is worth, in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ffprune_env.limits.limit import LimitName
from ffprune_env.run.best import read_best
from ffprune_env.run.config import targets_of
from ffprune_env.run.folder import RunFolder, part_of
from ffprune_env.run.results import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is drawn, from the back to the front, and how: colours that the colour-blind can tell apart.
_LINES = {"uniform": ("#999999", "s"), "ffn-only": ("#0072B2", "^"), "chosen": ("#D55E00", "o")}
#: The name of what a search for one sparsity alone chose.
ALONE = "one σ alone"
_BYTES = {"torch.float32": 4, "torch.float64": 8}
#: Perplexities of so many times the dense model's leave nothing to see of the others, unless they are on a log scale.
_STEEP = 4
_LEAST_APART = 0.07  # of names, as a part of the height
_SMALLEST_TYPE = 17  # points, on eight inches: legible at half the width of a phone


@dataclass(frozen=True)
class Point:
    """A model that can be had.

    Attributes:
        policy: ``dense``, ``uniform``, ``ffn-only``, ``chosen``, or of another run ``one σ alone``.
        sparsity: σ that was asked for; 0 for the dense model.
        size: of its weights, in MiB.
        test_ppl: of the model that is written: calibrated, if the run calibrates; infinite of one that collapsed.
        later: whether its sparsity is none that the run measured, but was asked for when it had ended.
    """

    policy: str
    sparsity: float
    size: float
    test_ppl: float
    later: bool = False


def frontier(run: Path, beside: Sequence[Path] = ()) -> list[Point]:
    """The models of a run: of all its sparsities, of those that were asked for later, and of searches beside it.

    Args:
        run: its folder.
        beside: folders of searches for one sparsity alone, of the same model on the same test text.

    Raises:
        ValueError: a run is not one, or has not ended; or one beside it is of more sparsities, or of something else.
    """
    folder = RunFolder(run)
    points: dict[tuple[str, float], Point] = {}
    for part, later in _parts(folder).items():
        for point in _points(part, folder, later):
            points.setdefault((point.policy, point.sparsity), point)
    for other in beside:
        searched = RunFolder(other)
        if len(targets_of(searched.read_config(), other).targets) > 1:
            raise ValueError(f"{other} is not of a search for one sparsity: put runs beside it that are")
        same = {name: searched.identity().get(name) for name in ("dtype", "config", "code", "weights", "test text")}
        changed = [name for name, value in same.items() if folder.identity().get(name) != value]
        if changed:
            raise ValueError(f"{other} has another {changed[0]} than {run}: put runs beside it that have the same")
        chosen = next(point for point in _points(searched, searched) if point.policy == "chosen")
        points[str(other), chosen.sparsity] = replace(chosen, policy=ALONE)
    return list(points.values())


def _parts(run: RunFolder) -> dict[RunFolder, bool]:
    """The folders with the models of a run, and whether each was asked for when the search had ended."""
    config, path = run.read_config(), run.path
    targets = targets_of(config, path).targets
    there = [file.parent for file in sorted(path.glob("s*/best.json"))]
    if any(config.get(name) is not None for name in get_args(LimitName)):
        # Its sparsities are those that it may look in, and none of them is reported.
        if not there:
            raise ValueError(
                f"{path} holds no s*/best.json: it has not ended, go on with it by --resume {path}; or no model meets "
                f"its limit, write one by ffprune allocate {path} --sparsity"
            )
        every = [RunFolder(part) for part in there]
        return {part: "limit" not in (part.read_json("best.json") or {}) for part in every}
    own = [path] if len(targets) == 1 else [part_of(path, target) for target in targets]
    parts = dict.fromkeys(own, False) | {part: True for part in there if part not in own}
    return {RunFolder(part): later for part, later in parts.items()}


def _points(part: RunFolder, run: RunFolder, later: bool = False) -> list[Point]:
    """The models that the ``best.json`` of a part of a run is about."""
    best = read_best(part, run.path)
    final: Mapping[str, Any] = best.get("calibration", best)
    manifest = run.read_json("manifest.json") or {}
    each = _BYTES.get(str(manifest.get("dtype")), 2)
    found = {policy: final[policy] for policy in ("dense", *_LINES) if policy in final}
    return [
        Point(policy, float(best["target_sparsity"]), x["params"] * each / 2**20, x["test_ppl"], later)
        if policy != "dense"
        else Point(policy, 0.0, x["params"] * each / 2**20, x["test_ppl"])
        for policy, x in found.items()
    ]


def frontier_plot(points: Sequence[Point], model: str, text: str) -> Figure:
    """Draws the models of a run; every line is named where it ends.

    Args:
        points: what there is; what has no finite perplexity is left out.
        model: name of the dense model, for the title.
        text: what perplexity was measured on, for the axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    points = [point for point in points if math.isfinite(point.test_ppl)]
    dense = [point for point in points if point.policy == "dense"]
    if any(point.test_ppl > _STEEP * dense[0].test_ppl for point in points if dense):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
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
    alone = [point for point in points if point.policy == ALONE]
    if alone:
        axes.plot(
            [x.size for x in alone], [x.test_ppl for x in alone], color="#009E73", marker="*", linestyle="", ms=18,
            label=f"a search for {ALONE}",
        )  # fmt: skip
    if not all(str(line.get_label()).startswith("_") for line in axes.get_lines()):
        axes.legend(loc="upper right", fontsize=_SMALLEST_TYPE, frameon=False)
    for x in dense:
        axes.plot(x.size, x.test_ppl, marker="D", ms=12, color="black")
        axes.annotate(
            "dense", (x.size, x.test_ppl), fontsize=_SMALLEST_TYPE + 2, weight="bold", xytext=(-14, -14),
            textcoords="offset points", ha="right", va="center",
        )  # fmt: skip
    axes.margins(y=0.1)
    axes.autoscale_view()
    to_part = axes.transData + axes.transAxes.inverted()
    heights = _apart([float(to_part.transform((end.size, end.test_ppl))[1]) for end in ends.values()])
    for (policy, end), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            label(policy), (end.size, height), xycoords=axes.get_xaxis_transform(), color=_LINES[policy][0],
            fontsize=_SMALLEST_TYPE + 2, weight="bold", xytext=(-10, 0), textcoords="offset points", ha="right",
            va="center",
        )  # fmt: skip
    left, right = axes.get_xlim()
    axes.set_xlim(left - 0.26 * (right - left), right)  # room for the names
    axes.set_title(f"{model}, pruned", fontsize=_SMALLEST_TYPE + 3)
    axes.set_xlabel("size of the weights, MiB", fontsize=_SMALLEST_TYPE)
    axes.set_ylabel(f"perplexity ({text})", fontsize=_SMALLEST_TYPE)
    axes.tick_params(labelsize=_SMALLEST_TYPE)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


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
