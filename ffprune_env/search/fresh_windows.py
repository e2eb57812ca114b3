"""Fresh windows: every rollout is measured on others, drawn from a pool, and compared with the start on the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.objectives.reward import RewardKind
from ffprune_env.evaluators.protocol import SearchEvaluator
from ffprune_env.search.noted import Note, reward_noted
from ffprune_env.search.samples import Sample
from ffprune_env.search.schedule import ProgressiveSchedule

logger = logging.getLogger(__name__)


def deal(pool: Sequence[int], counts: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Deals a pool like a deck of cards: shuffled, and anew where too few are left, so that none comes too often.

    Args:
        pool: indices of windows, at least as many as are dealt at once.
        counts: how many, deal after deal.
        seed: of the shuffling.

    Returns:
        The windows of every deal, each ascending and without repetition.
    """
    drawn, deck, shuffles = [], list[int](), 0
    for count in counts:
        if len(deck) < count:
            deck = np.random.default_rng([seed, shuffles]).permutation(np.array(pool)).tolist()
            shuffles += 1
        drawn.append(tuple(sorted(deck[:count])))
        deck = deck[count:]
    return drawn


class FreshWindows:
    """Which windows of the pool every turn of a schedule is measured on: a function of the seed and of the schedule.

    Args:
        schedule: says how many, and for how many steps.
        pool: their indices.
        seed: of the draw.

    Raises:
        ValueError: the pool has too few.
    """

    def __init__(self, schedule: ProgressiveSchedule, pool: Sequence[int], seed: int) -> None:
        if len(pool) < schedule.max_samples:
            raise ValueError(
                f"fresh windows are drawn from a pool of at least {schedule.max_samples}, the evaluator has "
                f"{len(pool)}: build it with fresh_windows=True"
            )
        self._turn = schedule.turn
        begins = range(0, schedule.total_steps, schedule.turn)
        self._drawn = deal(pool, [schedule.samples(t) for t in begins], seed)

    def at(self, t: float) -> tuple[int, ...]:
        """The windows of step t; past the end of the schedule, which tasks are set ahead for, those of the last."""
        return self._drawn[min(int(t) // self._turn, len(self._drawn) - 1)]


class StartBeside:
    """What the start is rewarded with on the windows of a rollout: one evaluation more, once for each set of windows.

    Args:
        evaluator: measures.
        kind: of reward.
        kept: the groups [N] that the start keeps at a sparsity.
        note: called with what was measured, unless it was known.

    Attributes:
        spent: windows measured so far.
    """

    def __init__(
        self, evaluator: SearchEvaluator, kind: RewardKind, kept: Callable[[float], IntArray], note: Note
    ) -> None:
        self.evaluator, self.kind, self.kept, self.note = evaluator, kind, kept, note
        self.spent = 0
        self._rewards: dict[tuple[float, tuple[int, ...]], float] = {}

    def reward(self, sparsity: float, windows: tuple[int, ...]) -> float:
        """The start's reward at a sparsity, on these windows."""
        key = (sparsity, windows)
        if key not in self._rewards:
            kept = self.kept(sparsity)
            self._rewards[key] = reward_noted(self.evaluator, kept, windows, self.kind, self.note)[0]
            self.spent += len(windows)
        return self._rewards[key]


def log_and_count_beside(samples: Sequence[Sample], of_start: int) -> int:
    """Logs on how many windows a search on fresh windows measured what is not a candidate, and counts them.

    Args:
        samples: all of them.
        of_start: windows that the start was measured on.

    Returns:
        The windows: those of the start, and those of the dense model, which is measured once on every window.
    """
    of_dense = len({i for sample in samples for i in sample.windows or ()})
    total = sum(sample.n_samples for sample in samples)
    logger.info(
        "fresh windows: the candidates were measured on %d, beside them the start on %d and the dense model on %d",
        *(total, of_start, of_dense),
    )
    return of_start + of_dense
