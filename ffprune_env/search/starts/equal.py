"""`none`: equal scores, as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ffprune_env.search.problem import Problem
from ffprune_env.search.starts.names import EQUAL
from ffprune_env.search.starts.start import Start, StartScores


@dataclass(frozen=True)
class Equal(Start):
    """Starts from nothing."""

    name: str = EQUAL

    def scores(self, problem: Problem, targets: Sequence[float]) -> StartScores:
        """Zeros."""
        return StartScores({target: np.zeros(len(problem.units)) for target in targets})
