"""How long every unit takes at every number of groups kept, on one server of this machine.

No server times a unit by itself. So whole models are timed in which all units of one shape keep the same number of
groups and all others are whole: what such a model saves, it saves in so many units alike. A few numbers of groups are
timed, each beside the dense model, and the others lie on lines between them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.export.dense_folder import save_dense
from ffprune_env.export.folder import save_pruned
from ffprune_env.lm.phases import phase
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.serving.backends import Backend, source_of
from ffprune_env.serving.served import in_turns
from ffprune_env.serving.worker import Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import PrunableModel

What = Literal["prefill", "decode"]
Clock = Literal["wall", "cpu"]
#: Rates that are timed, beside 1.
KNOTS = (0.75, 0.5, 0.25)
#: Nanoseconds of a second.
NANO = 10**9


@dataclass(frozen=True)
class Server:
    """Where and how models are timed.

    Attributes:
        backend: the server.
        gguf_type: how llama.cpp stores matrices.
        job: what is timed; one batch.
        rounds: how often.
        clock: ``wall``, or ``cpu`` for the time of all threads together.
    """

    backend: Backend
    gguf_type: str
    job: Job
    rounds: int = 5
    clock: Clock = "wall"

    def beside(self, dense: Path, pruned: Sequence[Path]) -> dict[What, tuple[float, list[float]]]:
        """Times the dense model and pruned ones in turns.

        Args:
            dense: what is loaded of it.
            pruned: of each of the others.

        Returns:
            Seconds of the dense model, and those of each pruned one as a fraction of them, medians, by what was timed.
        """
        sources = {"dense": dense, **{f"pruned {i}": source for i, source in enumerate(pruned)}}
        name = self.backend.name
        measured = in_turns(self.backend.python, name, sources, self.job, self.rounds, self.clock)
        found: dict[What, tuple[float, list[float]]] = {}
        for i, one in enumerate(measured["dense"].timings):
            others = [measured[f"pruned {j}"].timings[i] for j in range(len(pruned))]
            shares = [
                statistics.median(b / a for a, b in zip(one.seconds, other.seconds, strict=True)) for other in others
            ]
            what: What = "prefill" if one.what == "prefill" else "decode"
            found[what] = statistics.median(one.seconds), shares
        return found


@dataclass(frozen=True)
class ShapeTimes:
    """What a model takes whose units of one shape keep fewer groups.

    Attributes:
        units: how many units have this shape.
        kept: groups kept, ascending; the last are all there are.
        share: what the model takes then, as a fraction of the dense one, by what was timed.
    """

    units: int
    kept: tuple[int, ...]
    share: dict[What, tuple[float, ...]]

    def costs(self, what: What, dense: int) -> tuple[int, ...]:
        """What one unit takes with 0, 1, ... groups kept, less what it takes with none.

        Args:
            what: was timed.
            dense: nanoseconds of the dense model.
        """
        return interpolated(self.kept, [share * dense / self.units for share in self.share[what]])


def interpolated(kept: Sequence[int], times: Sequence[float]) -> tuple[int, ...]:
    """Times at every number of groups: on lines between those measured and beyond the first, never falling, from 0.

    Args:
        kept: numbers of groups, ascending, at least two; the last is the most.
        times: of them.
    """
    rising = np.maximum.accumulate(np.asarray(times, dtype=np.float64))
    slope = (rising[1] - rising[0]) / (kept[1] - kept[0])
    first = rising[0] - slope * kept[0]
    every = np.interp(np.arange(kept[-1] + 1), [0, *kept], [first, *rising])
    costs = np.rint(every - every[0]).astype(np.int64)
    return tuple(int(x) for x in costs)


def shapes_of(units: Sequence[PruneUnit]) -> list[list[int]]:
    """Indices of the units of every shape: of one kind, with as many groups and parameters."""
    shapes: dict[tuple[str, int, int], list[int]] = {}
    for i, unit in enumerate(units):
        shapes.setdefault((unit.kind, unit.n_groups, unit.n_params), []).append(i)
    return list(shapes.values())


def timed_at(n_groups: int) -> list[int]:
    """Groups kept that are timed, ascending, less all of them: none for a unit of a single group."""
    return sorted({max(1, round(rate * n_groups)) for rate in KNOTS} - {n_groups})


def time_units(
    prunable: PrunableModel, tokenizer: PreTrainedTokenizerBase, server: Server
) -> tuple[dict[What, float], list[ShapeTimes]]:
    """Times a model with fewer and fewer groups of every shape.

    Args:
        prunable: the ranked model, dense now; which groups go does not matter.
        tokenizer: the model's.
        server: where.

    Returns:
        Seconds of the dense model by what was timed, and the shapes in the order of :func:`shapes_of`.

    Raises:
        ValueError: the model cannot be written, or not for this server.
    """
    whole = np.array([unit.n_groups for unit in prunable.units], dtype=np.int64)
    seconds: dict[What, list[float]] = {"prefill": [], "decode": []}
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dense = save_dense(prunable, tokenizer, folder / "dense")
        source = source_of(server.backend, dense, folder / "dense", folder, server.gguf_type)
        del dense
        for members in shapes_of(prunable.units):
            n = prunable.units[members[0]].n_groups
            sources = []
            for k in timed_at(n):
                kept = whole.copy()
                kept[members] = k
                sources.append(_write(prunable, kept, tokenizer, server, folder / f"{members[0]}-{k}"))
            every: dict[What, tuple[float, ...]] = {"prefill": (1.0,), "decode": (1.0,)}
            for what, (took, shares) in (server.beside(source, sources) if sources else {}).items():
                seconds[what].append(took)
                every[what] = (*shares, 1.0)
            found.append(ShapeTimes(len(members), (*timed_at(n), n), every))
    return {what: statistics.median(took) for what, took in seconds.items()}, found


def _write(
    prunable: PrunableModel, kept: IntArray, tokenizer: PreTrainedTokenizerBase, server: Server, folder: Path
) -> Path:
    with phase("writing", f"a model to be timed, {int(kept.sum())} groups"):
        save_pruned(prunable, kept, folder, tokenizer, checked=False)  # so broken that rounding shows
        model = load_pruned(folder, device="cpu")
        return source_of(server.backend, model, folder, folder.parent, server.gguf_type)


def parts_of(name: str) -> tuple[What, ...]:
    """What is timed for a measure: ``latency`` is a prefill and the decode behind it."""
    parts: dict[str, tuple[What, ...]] = {"prefill": ("prefill",), "decode": ("decode",)}
    return parts.get(name, ("prefill", "decode"))


def priced(
    units: Sequence[PruneUnit], shapes: Sequence[ShapeTimes], dense: Mapping[What, float], name: str
) -> list[PruneUnit]:
    """The units with what they take as costs, in nanoseconds.

    Args:
        units: the N units.
        shapes: their times, in the order of :func:`shapes_of`.
        dense: seconds of the dense model.
        name: ``prefill``, ``decode``, or ``latency`` for one after the other.
    """
    found = list(units)
    for members, shape in zip(shapes_of(units), shapes, strict=True):
        if len(shape.kept) == 1:  # a single group never goes alone
            costs: tuple[int, ...] = (0,) * (shape.kept[0] + 1)
        else:
            each = [shape.costs(part, round(dense[part] * NANO)) for part in parts_of(name)]
            costs = tuple(map(sum, zip(*each, strict=True)))
        for i in members:
            found[i] = replace(units[i], costs=costs)
    return found
