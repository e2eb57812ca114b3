"""`random`: the best of as many random policies as the budget measures."""

from __future__ import annotations

import numpy as np

from ffprune_env.budget.allocation import Allocation
from ffprune_env.search.problem import Problem


def random_search(problem: Problem) -> Allocation:
    """Draws rates evenly between the bounds, moves them to the budget, and keeps the best.

    It has no start of its own; one that the problem names is measured first.

    Args:
        problem: what to answer; the budget must cover one evaluation.

    Raises:
        ValueError: it does not, or the sparsity is out of the range of the bounds.
    """
    meter, rng = problem.meter, np.random.default_rng(problem.seed)
    meter.require_evaluation("random search")
    best, least = None, np.inf
    named = [] if problem.init == "own" else [problem.start()]
    while meter.affords(meter.max_samples):
        rates = named.pop() if named else rng.uniform(problem.a_min, problem.a_max, len(problem.units))
        drawn = problem.allocate(rates)
        ppl = meter.measure(drawn.kept, meter.max_samples)
        if best is None or ppl < least:
            best, least = drawn, ppl
            meter.note(best)
    assert best is not None  # one evaluation is afforded
    return best
