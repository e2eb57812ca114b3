"""The last look: which of a few candidates is the best at exactly the sparsity that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.mapping import allocate, says_rates
from ffprune_env.budget.units import PruneUnit
from ffprune_env.search.added import MEAN, SAFETY_NET, START, Added, compare
from ffprune_env.search.affordable import rounds, windows_everywhere
from ffprune_env.search.in_words import windows_in_words
from ffprune_env.search.mean import ffn_only_scores
from ffprune_env.search.samples import Archive
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.settled import settled, simple_among, spoken_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a search says of one sparsity.

    Attributes:
        name: where it comes from: the start, the policy's mean, `ffn-only`, or a sample.
        scores: float64 [N].
        allocation: what they are mapped to.
        added: what the search added to its start; None before that is known.
        spent: windows that were measured to choose it.
    """

    name: str
    scores: FloatArray
    allocation: Allocation
    added: Added | None = None
    spent: int = 0


def candidates(
    settings: SearchSettings,
    units: Sequence[PruneUnit],
    start: FloatArray,
    mean: FloatArray,
    archive: Archive,
    simple: bool = True,
) -> dict[str, FloatArray]:
    """Scores of everything that the last look is given, by name; what comes first wins ties.

    Args:
        settings: of the search.
        units: the N units.
        start: [N] scores that the search started from.
        mean: [N] scores of the policy's mean.
        archive: the best samples of the search.
        simple: whether `ffn-only` is among them, where scores can say it.
    """
    scores = {START: start, MEAN: mean}
    if simple and says_rates(settings.mapping):
        # The best of the simple answers, and often hard to beat: a search should not end behind it.
        with suppress(ValueError):  # that attention stays whole is not always possible
            scores[SAFETY_NET] = ffn_only_scores(settings.target, units, **settings.bounds)
    return scores | {f"archived sample {i}": sample.scores for i, sample in enumerate(archive.best(), 1)}


def choose(
    settings: SearchSettings,
    units: Sequence[PruneUnit],
    scores: Mapping[str, FloatArray],
    measure: Callable[[IntArray, int], FloatArray],
    unseen: str = "neither start nor search saw",
) -> Answer:
    """The best of some candidates at S_final, by successive halving.

    All are measured on twice N_max windows, the better half on twice as many, and so on. Samples that were the best of
    many are lucky on the windows that they were found on, and so is the start on those of its curves: what they are
    ranked by is text that neither saw. `ffn-only` has to lead by more than chance: see
    :func:`~ffprune_env.search.settled.settled`.

    Args:
        settings: of the search; its target is the sparsity.
        units: the N units.
        scores: [N] scores by name; the start is among them.
        measure: loss with ``kept[i]`` groups of unit i in each of so many windows for finalists, float64 [n].
        unseen: who did not see these windows, in words.
    """
    bounds = settings.bounds
    answers = [
        Answer(name, x, allocate(x, settings.target, units, **bounds, mapping=settings.mapping))
        for name, x in scores.items()
    ]
    # What comes first wins ties; candidates that keep the same are one.
    ranked = list({x.allocation.kept.tobytes(): x for x in reversed(answers)}.values())[::-1]
    losses: dict[str, dict[int, FloatArray]] = {x.name: {} for x in ranked}
    for rivals, n_samples in rounds(settings, len(ranked)):
        text = f"{windows_in_words(n_samples)} that {unseen}"
        logger.info("measuring %d finalists at sparsity %g on %s", rivals, settings.target, text)
        found = {x.name: measure(x.allocation.kept, n_samples) for x in ranked[:rivals]}
        ranked = sorted(ranked[:rivals], key=lambda x: float(found[x.name].mean()))
        for name, measured in found.items():
            losses[name][n_samples] = measured
    last = {x.name: losses[x.name][n_samples] for x in ranked}
    simple = simple_among({x.name: x.allocation.kept.tobytes() for x in answers})
    order = settled([x.name for x in ranked], last, spoken_for(scores) - simple, simple)
    logger.info("the best is %s", order[0])
    spent = sum(n_samples for by_windows in losses.values() for n_samples in by_windows)
    means = {name: {n: float(x.mean()) for n, x in by_windows.items()} for name, by_windows in losses.items()}
    return replace(next(x for x in ranked if x.name == order[0]), added=compare(order, means), spent=spent)


def choose_everywhere(
    settings: SearchSettings,
    units: Sequence[PruneUnit],
    functions: Mapping[str, Mapping[float, FloatArray]],
    measure: Callable[[IntArray, int], FloatArray],
    unseen: str = "neither start nor search saw",
) -> dict[float, Answer]:
    """The best of some functions of σ, by the mean of ln PPL over the targets.

    One function is chosen for all σ, since what is asked for later lies between the targets. Functions that keep the
    same at every target are one. `ffn-only` has to lead by more than chance here, too.

    Args:
        settings: of the search; the sparsities that are measured are its targets.
        units: the N units.
        functions: [N] scores by target, by name; what comes first wins ties. The start is among them.
        measure: as for :func:`choose`.
        unseen: as for :func:`choose`.

    Returns:
        By target, what the best function says; what was added is the mean over the targets.
    """
    bounds = settings.bounds
    said = {
        name: {
            at: Answer(name, x, allocate(x, at, units, **bounds, mapping=settings.mapping)) for at, x in scores.items()
        }
        for name, scores in functions.items()
    }
    simple = simple_among({name: _kept_everywhere(by_target) for name, by_target in said.items()})
    answers = _different(said)
    n_samples = windows_everywhere(settings)
    text = f"{windows_in_words(n_samples)} that {unseen}"
    logger.info("measuring %s at %d sparsities on %s", ", ".join(answers), len(settings.targets), text)
    by_window = {
        name: np.mean([measure(answer.allocation.kept, n_samples) for answer in by_target.values()], axis=0)
        for name, by_target in answers.items()
    }
    losses = {name: float(x.mean()) for name, x in by_window.items()}
    known = set.intersection(*(spoken_for({name: x[at] for name, x in functions.items()}) for at in settings.targets))
    order = settled(sorted(losses, key=lambda name: losses[name]), by_window, known - simple, simple)
    best = order[0]
    others = ", ".join(f"{name} {losses[name] - losses[best]:+.3f}" for name in losses if name != best)
    logger.info("the best is %s%s", best, others and f"; nats per token more, on the average: {others}")
    added = compare(order, {name: {n_samples: loss} for name, loss in losses.items()})
    return {at: replace(answer, added=added, spent=len(order) * n_samples) for at, answer in answers[best].items()}


def _different(answers: Mapping[str, Mapping[float, Answer]]) -> dict[str, Mapping[float, Answer]]:
    """By name, less those that keep the same at every target as one before them."""
    found: dict[tuple[bytes, ...], str] = {}
    for name, by_target in answers.items():
        found.setdefault(_kept_everywhere(by_target), name)
    return {name: answers[name] for name in found.values()}


def _kept_everywhere(by_target: Mapping[float, Answer]) -> tuple[bytes, ...]:
    return tuple(answer.allocation.kept.tobytes() for answer in by_target.values())


def functions_of(
    settings: SearchSettings,
    units: Sequence[PruneUnit],
    starts: Mapping[float, FloatArray],
    means: Mapping[float, FloatArray],
    simple: bool = True,
) -> dict[str, dict[float, FloatArray]]:
    """The functions of σ that a search over a range ends with, by name.

    Args:
        settings: of the search.
        units: the N units.
        starts: [N] scores that it started from, by sparsity.
        means: [N] scores of the policy's mean, by the same sparsities.
        simple: whether `ffn-only` is among them, where scores can say it.
    """
    functions = {START: dict(starts), MEAN: dict(means)}
    if simple and says_rates(settings.mapping):
        with suppress(ValueError):
            functions[SAFETY_NET] = {at: ffn_only_scores(at, units, **settings.bounds) for at in starts}
    return functions
