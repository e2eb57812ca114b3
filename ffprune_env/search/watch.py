"""The windows that a search is watched on: what its policy does where no candidate is rewarded, each mean once."""

from __future__ import annotations

from ffprune_env.budget.arrays import IntArray
from ffprune_env.env import measure_reward
from ffprune_env.evaluators.objectives.reward import Kind
from ffprune_env.evaluators.protocol import SearchEvaluator
from ffprune_env.search.fresh_windows import Note


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
        self._rewards: dict[bytes, tuple[float, dict[str, float]]] = {}

    def require_windows(self, who: str) -> None:
        """Raises ValueError, naming who asks, where the evaluator has no such windows."""
        if not self.evaluator.watch:
            raise ValueError(f"{who} needs windows to watch the search on: build the evaluator with {who}, too")

    def ppl(self, kept: IntArray) -> float:
        """Perplexity with so many groups kept: [N]."""
        key = kept.tobytes()
        if key not in self._ppls:
            known = self.evaluator.remembers(kept, self.evaluator.watch)
            self._ppls[key] = self.evaluator.measure(kept, self.evaluator.watch)
            self._count(kept, known, self._ppls[key], None)
        return self._ppls[key]

    def reward(self, kept: IntArray, kind: Kind) -> tuple[float, dict[str, float]]:
        """The reward with so many groups kept, [N], and what was measured, as :func:`measure_reward` has it."""
        key = kept.tobytes()
        if key not in self._rewards:
            if not self._rewards:
                self.spent += len(self.evaluator.watch)  # of the dense model
            known = self.evaluator.remembers(kept, self.evaluator.watch, kind == "kl")
            self._rewards[key] = measure_reward(self.evaluator, kept, self.evaluator.watch, kind)
            measured = self._rewards[key][1]
            self._count(kept, known, measured["ppl"], measured.get("kl"))
        return self._rewards[key]

    def _count(self, kept: IntArray, known: bool, ppl: float, kl: float | None) -> None:
        if not known:
            self.note(kept, self.evaluator.watch, ppl, kl)
        if kept.tobytes() not in self._seen:
            self._seen.add(kept.tobytes())
            self.spent += len(self.evaluator.watch)
