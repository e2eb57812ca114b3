"""`eas`: the evolutionary search that the paper compares with, its operators and schedule brought to rates of units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.even import uniform
from ffprune_env.budget.units import PruneUnit
from ffprune_env.methods.evolution import cross
from ffprune_env.search.problem import Problem

# As printed: candidates of a generation, generations, parents, candidates that mutate a parent, and that cross two.
_POPULATION, _GENERATIONS, _PARENTS, _MUTANTS, _CROSSED = 100, 50, 10, 50, 30
_ALIKE = 0.8  # α as printed: what two masks have in common
# Of the ratio that stays, as printed (Table 1): the lowest of an attention and of an FFN, all of them up to 1.
_LOWEST = {0.9: (0.9, 0.6), 0.8: (0.8, 0.4), 0.7: (0.3, 0.2), 0.6: (0.6, 0.1), 0.5: (0.6, 0.1)}
_INTERVALS = (0.01, 0.05)
_TRIES = 10  # draws per candidate before fewer will do, as in the published code


@dataclass(frozen=True)
class Chances:
    """How likely a unit is to change.

    Attributes:
        ratio: P_s, that its rate is drawn anew.
        mask: P_m, that its mask is, where its rate is not.
    """

    ratio: float
    mask: float


#: As printed: of the first generation, and of the candidates after it that are to differ more.
FIRST = Chances(ratio=0.3, mask=0.6)
#: As printed: of all other candidates that mutate a parent.
LATER = Chances(ratio=0.1, mask=0.3)


@dataclass(frozen=True)
class Sizes:
    """How many candidates there are of each kind.

    Attributes:
        population: of a generation.
        parents: of them that stay.
        mutants: that mutate a parent by :data:`LATER`.
        crossed: that cross two parents. The rest mutates a parent by :data:`FIRST`.
    """

    population: int
    parents: int
    mutants: int
    crossed: int

    @classmethod
    def of(cls, evaluations: int) -> Sizes:
        """The printed sizes for the printed 5000 evaluations or more.

        Of fewer, population and number of generations shrink alike, and the parts of a population with it; two parents
        are the least that can be crossed.
        """
        scale = min(1.0, math.sqrt(evaluations / (_POPULATION * _GENERATIONS)))
        parents, mutants, crossed = (round(scale * n) for n in (_PARENTS, _MUTANTS, _CROSSED))
        return cls(max(1, round(scale * _POPULATION)), max(2, parents), mutants, crossed)


def eas(problem: Problem) -> Allocation:
    """Evolves rates from equal ones by the reference's mutations, crossover and selection, and returns the best.

    The first generation is equal rates, whose groups the ranking chose, and mutants of it. Then, generation after
    generation, the best of all so far are parents: half of the next candidates are mutants of one of them, three tenths
    take every rate from one of two, and the rest are mutants that differ more. Every candidate is moved to the budget,
    and measured on all windows unless it was before.

    Printed values that are used: population 100, of which 50 mutate and 30 cross, 10 parents, 50 generations (fewer
    evaluations than these 5000 shrink all alike, see :class:`Sizes`), P_s 0.3 and P_m 0.6 at first, 0.1 and 0.3 then,
    α 0.8, and the ranges of ratios (its Table 1, at the P that is nearest). What differs, and why:

    - A mask is a prefix of the groups in the order of the ranking, which all methods of a comparison share. So
      importance decides which groups a unit keeps, as in the reference, but by the ranking's criterion and not by its
      own. And a mask that is to differ from the last one has to be of another length: mask mutation keeps α of the
      longer of the two, and what a unit gains by it the others lose, so that the ratio that stays is the model's.
    - Attention loses whole heads, not dimensions of every head.
    - There is no depth to mutate: a unit keeps at least one group. (P_d is 0.1; of most models it has a choice from
      70 % downward.)
    - A candidate of another size than asked for is moved to the budget, by one constant for all units, where the
      reference drops it: at a budget that is met to the group hardly any would be left.
    - Candidates are measured like those of every other search: on the same text, and calibrated if that is what the
      comparison rewards. The reference takes a few random windows, and reforms the weights (by ADMM, what Eqs. 6-7 do
      here) of the result only.
    - Not printed, so as in the published code: rates mutate unit by unit, parents stay until they are beaten, and no
      candidate is measured twice.

    Args:
        problem: what to answer; the budget must cover one evaluation. Where it leaves the start to the search
            (``own``), that is equal rates, with or without a model.

    Raises:
        ValueError: it does not, or the sparsity is out of the range of the bounds.

    Source:
        Shen et al., Search for Efficient Large Language Models, arXiv 2409.17372; github.com/shawnricecake/search-llm.
    """
    meter, rng = problem.meter, np.random.default_rng(problem.seed)
    meter.require_evaluation("eas")
    sizes, seen = Sizes.of(meter.budget // meter.max_samples), set[bytes]()
    start = uniform(problem.sparsity, problem.units).rates if problem.init == "own" else problem.start()
    parents: list[tuple[float, Allocation]] = []  # best first

    def mutant(chances: Chances) -> FloatArray:
        parent = parents[int(rng.integers(len(parents)))][1].rates if parents else start
        return mutate(parent, problem.units, problem.sparsity, chances, rng)

    def crossed() -> FloatArray:
        mother, father = (parents[int(i)][1].rates for i in rng.integers(len(parents), size=2))
        return cross(mother, father, rng)

    candidates = draw(problem, lambda: start, 1, seen)
    candidates += draw(problem, lambda: mutant(FIRST), sizes.population - 1, seen)
    while candidates:
        for candidate in candidates:
            if not meter.affords(meter.max_samples):
                break
            parents.append((meter.measure(candidate.kept, meter.max_samples), candidate))
        parents = sorted(parents, key=lambda member: member[0])[: sizes.parents]
        meter.note(parents[0][1])
        if not meter.affords(meter.max_samples):
            break
        candidates = draw(problem, lambda: mutant(LATER), sizes.mutants, seen)
        candidates += draw(problem, crossed, sizes.crossed, seen)
        candidates += draw(problem, lambda: mutant(FIRST), sizes.population - len(candidates), seen)
    return parents[0][1]


def draw(problem: Problem, make: Callable[[], FloatArray], n: int, seen: set[bytes]) -> list[Allocation]:
    """Candidates at the budget that were not seen before; fewer than n where hardly any other is found.

    Args:
        problem: whose budget and bounds they keep.
        make: draws the rates of one.
        n: how many.
        seen: the groups kept by all so far; those of the new ones are added.
    """
    found: list[Allocation] = []
    for _ in range(_TRIES * n):
        if len(found) == n:
            break
        candidate = problem.allocate(make())
        if candidate.kept.tobytes() not in seen:
            seen.add(candidate.kept.tobytes())
            found.append(candidate)
    return found


def mutate(
    rates: FloatArray, units: Sequence[PruneUnit], sparsity: float, chances: Chances, rng: np.random.Generator
) -> FloatArray:
    """Ratio mutation, and mask mutation of the units that it leaves; the budget is to be met afterwards.

    Args:
        rates: [N], of the parent.
        units: the N units.
        sparsity: σ, which says from which range a ratio is drawn.
        chances: of a unit to change.
        rng: what is drawn with.
    """
    anew = rng.random(len(rates)) < chances.ratio
    masked = rng.random(len(rates)) < chances.mask
    # Evenly over all lengths that have α in common with the last one, shorter and longer.
    alike = rates * rng.uniform(_ALIKE, 1 / _ALIKE, len(rates))
    return np.where(anew, draw_ratios(units, sparsity, rng), np.where(masked, np.minimum(alike, 1.0), rates))


def draw_ratios(units: Sequence[PruneUnit], sparsity: float, rng: np.random.Generator) -> FloatArray:
    """A ratio per unit, evenly from those that are printed for its kind at the nearest P: [N]."""
    nearest = min(_LOWEST, key=lambda retention: abs(retention - (1 - sparsity)))
    kind = [0 if unit.kind == "attention" else 1 for unit in units]
    lowest, interval = np.array(_LOWEST[nearest])[kind], np.array(_INTERVALS)[kind]
    steps = np.rint((1 - lowest) / interval).astype(np.int64)
    drawn: FloatArray = lowest + interval * rng.integers(0, steps + 1)
    return drawn
