"""Perplexity against the size of the file, over the sparsities of a run: what a search is worth, in one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffprune_env.run.folder import RunFolder, part_of
from ffprune_env.run.results import label
from ffprune_env.search.settings import SearchSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is drawn, from the back to the front, and how: colours that the colour-blind can tell apart.
_LINES = {"uniform": ("#999999", "s"), "ffn-only": ("#0072B2", "^"), "chosen": ("#D55E00", "o")}
_BYTES = {"torch.float32": 4, "torch.float64": 8}
_SMALLEST_TYPE = 17  # points, on eight inches: legible at half the width of a phone


@dataclass(frozen=True)
class Point:
    """A model that can be had.

    Attributes:
        policy: ``dense``, ``uniform``, ``ffn-only`` or ``chosen``.
        sparsity: σ that was asked for; 0 for the dense model.
        size: of its weights, in MiB.
        test_ppl: of the model that is written: calibrated, if the run calibrates.
    """

    policy: str
    sparsity: float
    size: float
    test_ppl: float


def frontier(run: Path) -> list[Point]:
    """The models of a run, of all its sparsities.

    Args:
        run: its folder.

    Raises:
        ValueError: the run is not one, or has not ended.
    """
    folder = RunFolder(run)
    settings, manifest = folder.read_config(), folder.read_json("manifest.json") or {}
    asked = settings.get("sparsity")
    targets = SearchSettings(sparsity=tuple(asked) if isinstance(asked, list) else float(str(asked))).targets
    each = _BYTES.get(str(manifest.get("dtype")), 2)
    points: dict[tuple[str, float], Point] = {}
    for target in targets:
        file = (run if len(targets) == 1 else part_of(run, target)) / "best.json"
        if not file.is_file():
            raise ValueError(f"{run} has not ended: there is no {file}; go on with it by --resume {run}")
        best = json.loads(file.read_text(encoding="utf-8"))
        final: Mapping[str, Any] = best.get("calibration", best)
        for policy in ("dense", *_LINES):
            if policy in final:
                at, found = (0.0 if policy == "dense" else target), final[policy]
                points[policy, at] = Point(policy, at, found["params"] * each / 2**20, found["test_ppl"])
    return list(points.values())


def frontier_plot(points: Sequence[Point], model: str, text: str) -> Figure:
    """Draws the models of a run; every line is named where it ends.

    Args:
        points: what there is.
        model: name of the dense model, for the title.
        text: what perplexity was measured on, for the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    dense = next(point for point in points if point.policy == "dense")
    for policy, (colour, marker) in _LINES.items():
        own = sorted((point for point in points if point.policy == policy), key=lambda point: point.sparsity)
        if not own:
            continue
        line = [dense, *own]
        axes.plot([x.size for x in line], [x.test_ppl for x in line], color=colour, marker=marker, linewidth=3, ms=9)
        axes.annotate(
            label(policy), (own[-1].size, own[-1].test_ppl), color=colour, fontsize=_SMALLEST_TYPE + 2, weight="bold",
            xytext=(-10, 0), textcoords="offset points", ha="right", va="center",
        )  # fmt: skip
    axes.plot(dense.size, dense.test_ppl, marker="D", ms=12, color="black")
    axes.annotate(
        "dense", (dense.size, dense.test_ppl), fontsize=_SMALLEST_TYPE + 2, weight="bold",
        xytext=(-14, -14), textcoords="offset points", ha="right", va="center",
    )  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.05 * (high - low), high)
    left, right = axes.get_xlim()
    axes.set_xlim(left - 0.22 * (right - left), right)  # room for the names
    axes.set_title(f"{model}, pruned", fontsize=_SMALLEST_TYPE + 3)
    axes.set_xlabel("size of the weights, MiB", fontsize=_SMALLEST_TYPE)
    axes.set_ylabel(f"perplexity ({text})", fontsize=_SMALLEST_TYPE)
    axes.tick_params(labelsize=_SMALLEST_TYPE)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
