"""`evolution`: a population of rates, crossed and mutated, as plainly as that can be."""

from __future__ import annotations

import numpy as np

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.search.problem import Problem

_POPULATION = 16
_TOURNAMENT = 3
_MUTATED = 0.2  # share of the rates of a child that change, on average
_STEP = 0.1  # standard deviation of a change


def evolution(problem: Problem) -> Allocation:
    """Evolves rates: parents by tournament, uniform crossover, Gaussian mutation, and the best of old and new survive.

    The population starts as :meth:`~ffprune_env.search.problem.Problem.start` and mutants of it. Every child is moved
    to the budget and measured on all windows. The search that the paper compares with has operators of its own:
    :func:`~ffprune_env.methods.eas.eas`.

    Args:
        problem: what to answer; the budget must cover one evaluation.

    Raises:
        ValueError: it does not, or the sparsity is out of the range of the bounds.
    """
    meter, rng = problem.meter, np.random.default_rng(problem.seed)
    meter.require_evaluation("evolution")
    population: list[tuple[float, FloatArray, Allocation]] = []  # best first
    children = [problem.start()] + [mutate(problem.start(), rng) for _ in range(_POPULATION - 1)]
    while meter.affords(meter.max_samples):
        for rates in children:
            if not meter.affords(meter.max_samples):
                break
            allocation = problem.allocate(rates)
            population.append((meter.measure(allocation.kept, meter.max_samples), allocation.rates, allocation))
        population = sorted(population, key=lambda member: member[0])[:_POPULATION]
        meter.note(population[0][2])
        children = [
            mutate(cross(tournament(population, rng), tournament(population, rng), rng), rng)
            for _ in range(_POPULATION)
        ]
    return population[0][2]


def tournament(population: list[tuple[float, FloatArray, Allocation]], rng: np.random.Generator) -> FloatArray:
    """The rates of the best of a few members drawn at random; members are in order, best first."""
    return population[int(rng.integers(len(population), size=_TOURNAMENT).min())][1]


def cross(mother: FloatArray, father: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Every rate from one parent or the other."""
    return np.where(rng.random(len(mother)) < 0.5, mother, father)


def mutate(rates: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Some of the rates, moved a little."""
    return rates + (rng.random(len(rates)) < _MUTATED) * rng.normal(0, _STEP, len(rates))
