"""The policy of another run, at whatever sparsity that was trained (Sec. 2.2 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.mapping import allocate
from ffprune_env.budget.units import PruneUnit
from ffprune_env.search.mean import scores_of
from ffprune_env.search.problem import Problem
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.starts.fisher import fisher
from ffprune_env.search.starts.fisher_iterated import cost_of_steps, iterate
from ffprune_env.search.starts.known import others
from ffprune_env.search.starts.start import Start, StartScores

#: Steps on the pruned model that what another run says is improved by.
STEPS = 3


@dataclass(frozen=True)
class OtherRun(Start):
    """What another run has learnt, improved by a few steps on the pruned model.

    Attributes:
        policy: its policy, read once.
        meaning: what its scores must mean here: mapping, bounds, scale.
        steps: of improvement; 0 takes the policy as it is.
    """

    policy: Policy
    meaning: Mapping[str, Any]
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Where it was read from."""
        return str(self.policy.run)

    @property
    def looks(self) -> bool:
        """Whether it is improved."""
        return self.steps > 0

    @property
    def unseen(self) -> str:
        """Of the other run other windows may have been shared out."""
        return f"neither this search nor its start saw, whatever {self.name} did"

    def cost(self, problem: Problem) -> int:
        """A look at the dense model, and one at every step."""
        return cost_of_steps(problem, self.steps)

    def cheaper(self) -> Iterator[Start]:
        """Fewer steps, down to none."""
        yield from (replace(self, steps=steps) for steps in range(self.steps - 1, -1, -1))

    def require_fits(self, units: Sequence[PruneUnit]) -> None:
        """Raises ValueError if the policy is of another model, or its scores mean something else."""
        self.policy.require_fits(units, self.meaning)

    def scores(self, problem: Problem, targets: Sequence[float]) -> StartScores:
        """What the policy says of every target, improved; of others, what it says of them moved as far."""
        self.require_fits(problem.units)
        found = {target: self._scores(replace(problem, sparsity=target)) for target in targets}
        known = {}
        for at in others(targets, problem):
            nearest = min(targets, key=lambda target: abs(target - at))
            known[at] = self.policy.scores(at) + found[nearest] - self.policy.scores(nearest)
        return StartScores(found, known)

    def _scores(self, problem: Problem) -> FloatArray:
        """Of a sparsity that the policy was not trained for its guess and `fisher` are about as good.

        They miss in different ways: the steps begin half-way between them, which is better than either.
        """
        scores = self.policy.scores(problem.sparsity)
        if not self.steps or problem.windows is None:
            return scores
        bounds = {"a_min": problem.a_min, "a_max": problem.a_max}
        there = allocate(scores, problem.sparsity, problem.units, **bounds, mapping=self.meaning["mapping"])
        if problem.sparsity not in self.policy.targets:
            there = problem.allocate((there.rates + fisher(problem).rates) / 2)
        return scores_of(iterate(problem, self.steps, there)[0], **bounds)
