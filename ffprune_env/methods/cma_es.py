"""`cma-es`: the rates as a vector, its distribution adapted by the ``cma`` package."""

from __future__ import annotations

import math

import cma
import numpy as np

from ffprune_env.budget.allocation import Allocation
from ffprune_env.search.problem import Problem

_STEP = 0.1  # standard deviation of the rates at the start


def cma_es(problem: Problem) -> Allocation:
    """Minimizes ln PPL over rates, which are moved to the budget before they are measured, with the package's defaults.

    Args:
        problem: what to answer; the budget must cover one evaluation.

    Raises:
        ValueError: it does not, or the sparsity is out of the range of the bounds.

    Source:
        Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772.
    """
    meter = problem.meter
    meter.require_evaluation("cma-es")
    start = problem.allocate(problem.start())
    # The package samples around the start and never measures it; every other search does.
    best, least = start, meter.measure(start.kept, meter.max_samples)
    meter.note(best)
    # Seed 0 would ask the package for one from the clock.
    options = {"seed": problem.seed + 1, "bounds": [problem.a_min, problem.a_max], "verbose": -9}
    strategy = cma.CMAEvolutionStrategy(np.clip(start.rates, problem.a_min, problem.a_max), _STEP, options)
    while meter.affords(meter.max_samples):
        asked = strategy.ask()
        losses = []
        for rates in asked:
            if not meter.affords(meter.max_samples):
                break
            allocation = problem.allocate(rates)
            ppl = meter.measure(allocation.kept, meter.max_samples)
            losses.append(math.log(min(ppl, 1e30)))
            if ppl < least:
                best, least = allocation, ppl
        meter.note(best)
        if len(losses) == len(asked):
            strategy.tell(asked, losses)
    return best
