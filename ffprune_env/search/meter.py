"""Meter: what the measurements of a method run through, so that they are counted and its budget is kept."""

from __future__ import annotations

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators.protocol import SearchEvaluator, Windows, number_of

#: What a forward and a backward pass cost, in forward passes.
LOOK_COST = 3


class BudgetSpentError(RuntimeError):
    """A method asked for a measurement that its budget does not cover."""


class Meter:
    """An evaluator with a budget: every window measured is counted, answered from memory or not, and none beyond it.

    Args:
        evaluator: what is measured with.
        evaluations: the budget, in measurements on N_max windows.

    Attributes:
        max_samples: N_max, windows of search text for one measurement of a search.
        max_final_samples: windows for a last look at few candidates, which no search sees before.
        pool: indices of further windows that those of a rollout can be drawn from.
        watch: indices of further windows to watch a search on.
        spent: windows charged so far; one with a backward pass counts as three.
        seen: windows that the model read so far, each time that it did: none where the evaluator remembers the answer.
        candidates: measurements so far, on however few windows each; those for finalists are not among them, nor what
            a search says by :meth:`recount` that it measured beside its candidates.
        trace: (windows spent, kept) at every :meth:`note`.

    Raises:
        ValueError: the budget is negative.
    """

    def __init__(self, evaluator: SearchEvaluator, evaluations: int) -> None:
        if evaluations < 0:
            raise ValueError(f"a budget of evaluations must be at least 0, got {evaluations}")
        self.max_samples, self.max_final_samples = evaluator.max_samples, evaluator.max_final_samples
        self.pool, self.watch = evaluator.pool, evaluator.watch
        self.evaluator = evaluator
        self._dense_seen: set[int] = set()
        self.budget = evaluations * self.max_samples
        self.spent = self.seen = self.candidates = 0
        self.trace: list[tuple[int, IntArray]] = []

    @property
    def units(self) -> tuple[PruneUnit, ...]:
        """The N units."""
        return self.evaluator.units

    def affords(self, n_samples: int) -> bool:
        """Whether ``n_samples`` more windows can be measured."""
        return self.spent + n_samples <= self.budget

    def require_evaluation(self, name: str) -> None:
        """Raises ValueError, naming the search that asks, where the budget does not cover a single evaluation."""
        if not self.affords(self.max_samples):
            raise ValueError(f"{name} needs a budget of at least 1 evaluation, got 0: give --evaluations 1 or more")

    def measure(self, kept: IntArray, n_samples: Windows) -> float:
        """Perplexity, counted."""
        self.spend(number_of(n_samples), seen=not self.evaluator.remembers(kept, n_samples))
        self.candidates += 1
        return self.evaluator.measure(kept, n_samples)

    def compare(self, kept: IntArray, n_samples: Windows) -> tuple[float, float]:
        """Perplexity and divergence from the dense model, counted once."""
        self.spend(number_of(n_samples), seen=not self.evaluator.remembers(kept, n_samples, kl=True))
        self.candidates += 1
        return self.evaluator.compare(kept, n_samples)

    def final_losses(self, kept: IntArray, n_samples: int) -> FloatArray:
        """Losses in windows for finalists, counted."""
        self.spend(n_samples)
        return self.evaluator.final_losses(kept, n_samples)

    def rewarding(self, reward: str) -> Meter:
        """Itself: what it measures is what is rewarded."""
        return self

    def remembers(self, kept: IntArray, n_samples: Windows, kl: bool = False) -> bool:
        """Whether the evaluator would answer without reading text."""
        return self.evaluator.remembers(kept, n_samples, kl)

    def dense(self, n_samples: Windows) -> float:
        """Perplexity of the dense model: measured once for everybody, and free, but on windows that others do not see.

        Each of those is counted once.
        """
        if not isinstance(n_samples, int):
            new = set(n_samples) - self._dense_seen
            self.spend(len(new))
            self._dense_seen |= new
        return self.evaluator.dense(n_samples)

    def note(self, allocation: Allocation) -> None:
        """Records what the method would return if it were stopped now."""
        self.trace.append((self.spent, allocation.kept))

    def spend(self, n_samples: int, seen: bool = True) -> None:
        """Counts windows that are measured.

        Args:
            n_samples: how many.
            seen: whether the model reads them.

        Raises:
            BudgetSpentError: the budget does not cover them.
        """
        if not self.affords(n_samples):
            left = f"{self.budget - self.spent} of {self.budget}"
            raise BudgetSpentError(f"{n_samples} windows asked for, {left} are left")
        self.spent += n_samples
        self.seen += n_samples if seen else 0

    def recount(self, before: int, candidates: int) -> None:
        """Sets right how many candidates there were, where a search also measured others beside them, as its start.

        Args:
            before: how many there were when the search began.
            candidates: how many of its measurements were candidates.
        """
        self.candidates = before + candidates

    def look(self, n_samples: int) -> None:
        """Counts windows that gradients are taken on: seen once, and charged as LOOK_COST, whatever the budget is.

        Methods that do not search have none; those that do ask for what a look costs before they begin.
        """
        self.spent += LOOK_COST * n_samples
        self.seen += n_samples
