"""`evopress`: one parent, children that swap levels between units, selected in stages by their divergence."""

from __future__ import annotations

import numpy as np

from ffprune_env.budget.allocation import Allocation, group_bounds, settle
from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.cost_tables import CostTables
from ffprune_env.search.problem import Problem

_CHILDREN = 8
_MOST_SWAPS = 3
_FINALISTS = 2
# Draws for a child before fewer children will do: a model of few groups has few neighbours.
_TRIES = 20


def evopress(problem: Problem) -> Allocation:
    """(1 + λ) evolution: a child moves a few levels from one unit to another of its kind or not, the budget stays.

    A level is the largest group of the model: one head, or as many channels. Children are measured by KL to the dense
    model, first all of them on one window, then the best few on all windows; the parent stays unless one beats it
    there. No two children of a generation are the same, nor the same as their parent. The source selects in more
    stages, on a thousand times as much text (docs/methods.md). With a single window there is one stage.

    Args:
        problem: what to answer; the budget must cover one evaluation.

    Raises:
        ValueError: it does not, or the sparsity is out of the range of the bounds.

    Source:
        Sieberling et al., EvoPress, arXiv 2410.14649; github.com/IST-DASLab/EvoPress.
    """
    meter, rng = problem.meter, np.random.default_rng(problem.seed)
    meter.require_evaluation("evopress")
    parent = problem.allocate(problem.start())
    least = meter.compare(parent.kept, meter.max_samples)[1]
    meter.note(parent)
    staged = meter.max_samples > 1
    while meter.affords((_CHILDREN if staged else 0) + _FINALISTS * meter.max_samples):
        children = draw_children(problem, parent, _CHILDREN if staged else _FINALISTS, rng)
        if not children:
            break
        if staged:
            first = [meter.compare(child.kept, 1)[1] for child in children]
            children = [children[i] for i in np.argsort(first, kind="stable")[:_FINALISTS]]
        for child in children:
            divergence = meter.compare(child.kept, meter.max_samples)[1]
            if divergence < least:
                parent, least = child, divergence
                meter.note(parent)
    return parent


def draw_children(problem: Problem, parent: Allocation, n: int, rng: np.random.Generator) -> list[Allocation]:
    """Different children, none like the parent; fewer than n where hardly any other is found."""
    drawn = {parent.kept.tobytes(): parent}
    for _ in range(_TRIES * n):
        if len(drawn) > n:
            break
        child = swap_levels(problem, parent, rng)
        drawn.setdefault(child.kept.tobytes(), child)
    return list(drawn.values())[1:]


def swap_levels(problem: Problem, parent: Allocation, rng: np.random.Generator) -> Allocation:
    """Takes a level from one unit and gives it to another, up to three times."""
    units = problem.units
    low, high = group_bounds(units, problem.a_min, problem.a_max)
    size = CostTables.of_units(units).mean_cost()
    level = np.array([round(size.max() / s) if s else unit.n_groups for s, unit in zip(size, units, strict=True)])
    kept: IntArray = parent.kept.copy()
    # The smaller of two draws, as in the source: mostly one swap.
    for _ in range(int(rng.integers(1, _MOST_SWAPS + 1, size=2).min())):
        givers, takers = np.flatnonzero(kept - level >= low), np.flatnonzero(kept + level <= high)
        if len(givers) and len(takers):
            giver, taker = rng.choice(givers), rng.choice(takers)
            kept[giver] -= level[giver]
            kept[taker] += level[taker]
    # A level is a whole number of groups and so not quite the same size everywhere: any unit may settle the difference.
    priority = rng.random(len(units))
    return settle(kept, priority, problem.sparsity, units, a_min=problem.a_min, a_max=problem.a_max)
