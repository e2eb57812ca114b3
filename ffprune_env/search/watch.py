"""The windows that a search is watched on: what its policy does where no candidate is rewarded, each mean once."""

from __future__ import annotations

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.objectives.reward import RewardKind
from ffprune_env.evaluators.protocol import SearchEvaluator
from ffprune_env.search.noted import Note, loss_noted, reward_noted


class Watch:
    """Measures allocations on windows to watch on; whoever watches shares what was measured.

    Args:
        evaluator: measures, on those windows.
        note: called with what was measured, unless the evaluator knew it.

    Attributes:
        spent: windows measured so far, whatever the evaluator remembers of a process before this one.
    """

    def __init__(self, evaluator: SearchEvaluator, note: Note) -> None:
        self.evaluator, self.note = evaluator, note
        self.spent = 0
        self._seen: set[bytes] = set()
        self._losses: dict[tuple[bytes, RewardKind], float] = {}
        self._rewards: dict[bytes, tuple[float, dict[str, float]]] = {}

    def require_windows(self, who: str) -> None:
        """Raises ValueError, naming who asks, where the evaluator has no such windows."""
        if not self.evaluator.watch:
            raise ValueError(f"{who} needs windows to watch the search on: build the evaluator with {who}, too")

    def loss(self, kept: IntArray, kind: RewardKind) -> float:
        """What a search minimizes, in nats, with so many groups kept: see :func:`~ffprune_env.search.noted.loss_noted`.

        Args:
            kept: int [N].
            kind: of reward.
        """
        key = kept.tobytes(), kind
        if key not in self._losses:
            self._losses[key] = loss_noted(self.evaluator, kept, self.evaluator.watch, kind, self.note)
            self._count(key[0])
        return self._losses[key]

    def reward(self, kept: IntArray, kind: RewardKind) -> tuple[float, dict[str, float]]:
        """The reward with so many groups kept, [N], and what was measured, as ``measure_reward`` has it."""
        key = kept.tobytes()
        if key not in self._rewards:
            if not self._rewards:
                self.spent += len(self.evaluator.watch)  # of the dense model
            self._rewards[key] = reward_noted(self.evaluator, kept, self.evaluator.watch, kind, self.note)
            self._count(key)
        return self._rewards[key]

    def _count(self, key: bytes) -> None:
        if key not in self._seen:
            self._seen.add(key)
            self.spent += len(self.evaluator.watch)
