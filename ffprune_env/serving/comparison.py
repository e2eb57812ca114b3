"""How much faster and smaller the pruned model is than the dense one, beside how much it could be."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ffprune_env.serving.served import Measured
from ffprune_env.serving.worker import Job


@dataclass(frozen=True)
class Speed:
    """One thing that both models did.

    Attributes:
        what: ``prefill``, or ``decode``, which the time of the prompt is no part of.
        batch: sequences at once.
        dense: tokens per second of the dense model, the median of all rounds.
        pruned: the same of the pruned model.
        ratio: how much faster the pruned model was, the median of the ratios taken round by round.
        low: their lower quartile.
        high: their upper quartile.
    """

    what: str
    batch: int
    dense: float
    pruned: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Served:
    """Both models on one server.

    Attributes:
        backend: its name, with the type of the matrices.
        threads: of the CPU.
        speeds: of everything that was timed.
        weights: bytes of the pruned model's weights as a fraction of the dense one's.
        cache: bytes of its cache for a token as a fraction of the dense one's; None where the server does not tell.
    """

    backend: str
    threads: int
    speeds: tuple[Speed, ...]
    weights: float
    cache: float | None


def compared(backend: str, job: Job, measured: Mapping[str, Measured]) -> Served:
    """Sets both models beside each other.

    Args:
        backend: name of the server, with the type of the matrices.
        job: what was asked for.
        measured: what ``dense`` and ``pruned`` took.
    """
    dense, pruned = measured["dense"], measured["pruned"]
    speeds = []
    for one, other in zip(dense.timings, pruned.timings, strict=True):
        tokens = one.batch * (job.prompt if one.what == "prefill" else job.new_tokens)
        ratios = [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        speeds.append(
            Speed(
                one.what,
                one.batch,
                tokens / statistics.median(one.seconds),
                tokens / statistics.median(other.seconds),
                statistics.median(ratios),
                low,
                high,
            )
        )
    # A dense model without a cache is one whose cache is not known.
    cache = pruned.cache / dense.cache if pruned.cache is not None and dense.cache else None
    return Served(backend, job.threads, tuple(speeds), pruned.weights / dense.weights, cache)


def as_json(found: list[Served], ideal: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was found, to be written as JSON.

    Args:
        found: by server and number of threads.
        ideal: parameters of the dense model, as a multiple of the pruned one's.
        settings: how it was measured.
    """
    return {
        "settings": dict(settings),
        "ideal": ideal,
        "served": [
            {
                "backend": served.backend,
                "threads": served.threads,
                "weights": served.weights,
                "cache": served.cache,
                "speeds": [{**vars(speed), "of_ideal": speed.ratio / ideal} for speed in served.speeds],
            }
            for served in found
        ],
    }
