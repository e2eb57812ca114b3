"""The windows that a search is watched on: what its policy does where no candidate is rewarded, each mean once."""

from __future__ import annotations

import math

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.objectives.reward import RewardKind
from ffprune_env.evaluators.protocol import SearchEvaluator
from ffprune_env.search.noted import Note, kl_noted, ppl_noted, reward_noted


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
        self._ppls: dict[bytes, float] = {}
        self._kls: dict[bytes, float] = {}
        self._rewards: dict[bytes, tuple[float, dict[str, float]]] = {}

    def require_windows(self, who: str) -> None:
        """Raises ValueError, naming who asks, where the evaluator has no such windows."""
        if not self.evaluator.watch:
            raise ValueError(f"{who} needs windows to watch the search on: build the evaluator with {who}, too")

    def ppl(self, kept: IntArray) -> float:
        """Perplexity with so many groups kept: [N]."""
        key = kept.tobytes()
        if key not in self._ppls:
            self._ppls[key] = ppl_noted(self.evaluator, kept, self.evaluator.watch, self.note)
            self._count(key)
        return self._ppls[key]

    def kl(self, kept: IntArray) -> float:
        """Divergence from the dense model with so many groups kept: [N]."""
        key = kept.tobytes()
        if key not in self._kls:
            self._kls[key] = kl_noted(self.evaluator, kept, self.evaluator.watch, self.note)
            self._count(key)
        return self._kls[key]

    def loss(self, kept: IntArray, kind: RewardKind) -> float:
        """What a search minimizes, in nats: the divergence if ``kl`` is rewarded, else ln PPL or what stands for it."""
        return self.kl(kept) if kind == "kl" else math.log(self.ppl(kept))

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
