"""Figures of a search: its learning curve, and what it keeps of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ffprune_env.budget.units import PruneUnit
    from ffprune_env.search.samples import Sample

_MARKERS = "os^Dv"

_MEANT = {"ppl": "PPL dense / PPL", "kl": "exp(-KL to the dense model)"}


def learning_curve_plot(
    samples: Sequence[Sample], references: Mapping[str, float], reward: str, means: bool = True
) -> Figure:
    """Reward of every evaluation with a running mean for each number of windows, and σ_t below it.

    Rewards on different windows do not compare, some of which are easy: they are never averaged.

    Args:
        samples: of one target, in order.
        references: named rewards at the final sparsity on all windows, drawn as lines; not where windows were drawn
            anew, of which the plot has the reward in parts of the start's.
        reward: what a reward is, for the axis.
        means: False leaves running means out, of samples at different sparsities, whose rewards do not compare.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = np.arange(1, len(samples) + 1)
    numbers = sorted({sample.n_samples for sample in samples})
    for n, shade in zip(numbers, _shades(len(numbers)), strict=True):
        chosen = [i for i, sample in enumerate(samples) if sample.n_samples == n]
        rewards, on = [samples[i].merit for i in chosen], f"{n} window{'s' if n > 1 else ''}"
        top.plot(steps[chosen], rewards, ".", color=shade, alpha=0.35, label=f"evaluation on {on}")
        if means:
            running = _running_mean(rewards, window=max(1, len(samples) // 20))
            top.plot(steps[chosen], running, color=shade, label=f"running mean of those on {on}")
    fresh = any(sample.start_reward is not None for sample in samples)
    references = {"the start": 1.0} if fresh else references
    for color, (name, value) in zip(("tab:green", "tab:red", "tab:purple"), references.items(), strict=False):
        top.axhline(value, color=color, linestyle="--", linewidth=1, label=f"{name} at the final sparsity")
    what = f"reward: {_MEANT.get(reward, reward)}"
    top.set_ylabel(f"{what}\nin parts of the start's on the same windows" if fresh else what)
    top.legend(loc="lower right", fontsize="small", ncols=1 + len(numbers) // 4)
    bottom.plot(steps, [sample.target_sparsity for sample in samples], color="tab:orange")
    bottom.set(xlabel="evaluation", ylabel="target sparsity σ", ylim=(0, None))
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    return figure


def retention_plot(units: Sequence[PruneUnit], policies: Mapping[str, npt.ArrayLike]) -> Figure:
    """Fraction of its groups that every layer keeps, attention, where any can be cut, and FFN apart.

    Args:
        units: the N units.
        policies: a name for each array of [N] rates.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    kinds = [kind for kind in ("attention", "ffn") if any(unit.kind == kind for unit in units)]
    for axes, kind in zip(figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0], kinds, strict=True):
        chosen = [i for i, unit in enumerate(units) if unit.kind == kind]
        layers = [units[i].layer for i in chosen]
        for marker, (name, rates) in zip(_MARKERS, policies.items(), strict=False):
            axes.plot(layers, np.asarray(rates)[chosen], marker=marker, markersize=4, label=name)
        axes.set(title="attention heads kept" if kind == "attention" else "FFN channels kept", ylabel="retention rate")
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
    axes.set_xlabel("decoder layer")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", fontsize="small", ncols=len(names))  # hides no point
    return figure


def _shades(n: int) -> list[tuple[float, ...]]:
    """Colours for ascending numbers of windows, the darkest for the most."""
    from matplotlib import colormaps

    return [tuple(colormaps["Blues"](0.75 - 0.4 * (n - 1 - i) / max(1, n - 1))) for i in range(n)]


def _running_mean(values: Sequence[float], window: int) -> npt.NDArray[np.float64]:
    """Mean of the last ``window`` values at each place, of fewer at the beginning."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means
