"""What the mean of a policy starts from: what a start must be able to say, and the scores that it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.search.problem import Problem


@dataclass(frozen=True)
class StartScores:
    """Scores for a policy's mean.

    Attributes:
        targets: [N] scores for every sparsity that is searched at.
        known: [N] scores for other sparsities, as far as they are known: they say how the answer changes with σ.
    """

    targets: Mapping[float, FloatArray]
    known: Mapping[float, FloatArray] = field(default_factory=dict)

    @property
    def everywhere(self) -> dict[float, FloatArray]:
        """Scores by sparsity, of the targets and of what else is known."""
        return {**self.targets, **self.known}


class Start(ABC):
    """Where a search starts, what that costs and what it looks at."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What ``--init`` calls it."""

    @property
    def looks(self) -> bool:
        """Whether gradients on search text are looked at."""
        return False

    @property
    def unseen(self) -> str:
        """Who did not see the windows that the last candidates are ranked on, in words."""
        return "neither start nor search saw"

    def cost(self, problem: Problem) -> int:
        """What it costs at the most, in windows of search text that are charged."""
        return 0

    def cheaper(self) -> Iterator[Start]:
        """What it can be replaced by where it costs too much, the dearest first; the last is free or nearly so."""
        yield from ()

    @abstractmethod
    def scores(self, problem: Problem, targets: Sequence[float]) -> StartScores:
        """The scores that the policy's mean starts from.

        Args:
            problem: of the bounds of the search; its sparsity does not count.
            targets: the sparsities asked for, ascending.
        """


def cheap_enough(start: Start, afforded: int, problem: Problem) -> Start:
    """The start itself, or the first of what it can be replaced by that costs no more than is afforded.

    Knowledge comes first: on held-out text another step was worth more than the evaluations that it costs.

    Args:
        start: what is wanted.
        afforded: windows of search text.
        problem: what is to be answered.
    """
    candidates = [start, *start.cheaper()]
    return next((x for x in candidates if x.cost(problem) <= afforded), candidates[-1])
