"""What the environment, and the searches, ask of whatever they measure with (docs/design.md, 4.8)."""

from __future__ import annotations

from typing import Protocol

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit

#: What is measured on: the first so many windows of search text, or further windows by their indices.
Windows = int | tuple[int, ...]


def number_of(windows: Windows) -> int:
    """How many windows that are."""
    return windows if isinstance(windows, int) else len(windows)


class Evaluator(Protocol):
    """Anything that can say how good a pruned model would be."""

    @property
    def units(self) -> tuple[PruneUnit, ...]:
        """The N units, in order."""
        ...

    @property
    def max_samples(self) -> int:
        """N_max, the most windows a measurement can use."""
        ...

    def measure(self, kept: IntArray, n_samples: Windows) -> float:
        """Perplexity with ``kept[i]`` groups of unit i, on the first ``n_samples`` windows; inf if not finite.

        In place of a number there may be indices, where the evaluator has further windows: see
        :attr:`SearchEvaluator.pool`.
        """
        ...

    def dense(self, n_samples: Windows) -> float:
        """Perplexity of the dense model on the same windows."""
        ...


class DivergenceEvaluator(Evaluator, Protocol):
    """An evaluator that can also say how far the pruned model's predictions are from the dense model's."""

    def compare(self, kept: IntArray, n_samples: Windows) -> tuple[float, float]:
        """Perplexity on these windows as :meth:`measure` gives it, and mean KL(dense ‖ pruned) there, in nats.

        One forward pass gives both; a KL that is not finite is inf.
        """
        ...


class SearchEvaluator(DivergenceEvaluator, Protocol):
    """An evaluator that also has windows for the last look at few candidates, which no search sees before."""

    @property
    def pool(self) -> tuple[int, ...]:
        """Indices of further windows, from which those of a rollout can be drawn anew; maybe none."""
        ...

    @property
    def watch(self) -> tuple[int, ...]:
        """Indices of further windows that no candidate is rewarded for, to watch a search on; maybe none."""
        ...

    @property
    def max_final_samples(self) -> int:
        """How many there are."""
        ...

    def final_losses(self, kept: IntArray, n_samples: int) -> FloatArray:
        """Loss with ``kept[i]`` groups of unit i in each of the first ``n_samples`` of these windows, float64 [n].

        Its mean is ln PPL; inf where it is not finite. One number for all where what is rewarded is not of windows.
        """
        ...

    def remembers(self, kept: IntArray, n_samples: Windows, kl: bool = False) -> bool:
        """Whether :meth:`measure`, or with ``kl`` :meth:`compare`, would answer without reading text."""
        ...
