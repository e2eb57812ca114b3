"""What a method answers to the problem of a comparison, and what it is charged for that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.methods.ppo import Found
from ffprune_env.methods.registry import Method, WarmStart
from ffprune_env.search.problem import Problem
from ffprune_env.search.saved_policy import Policy

if TYPE_CHECKING:
    from ffprune_env.comparison.subject import Subject

#: Parts of the budget after which what a search would return is measured on search text, for its trace.
MARKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class Paid:
    """What a method answers at one sparsity, and what that cost: of one search for several, an equal share each.

    Attributes:
        kept: groups kept per unit.
        trace: (windows charged, groups that would have been kept then), ascending.
        budget: windows of search text that it could have been charged.
        spent: windows that it was charged.
        seen: windows that the model read.
        seconds: that it took.
        candidates: that it measured, on however few windows each, less those of its last look.
        learned: what a search by PPO leaves for others to start from.
    """

    kept: IntArray
    trace: Sequence[tuple[float, IntArray]]
    budget: float
    spent: float
    seen: float
    seconds: float
    candidates: float
    learned: Policy | None = None


def answer_of(subject: Subject, method: Method, sparsity: float, seed: int, evaluations: int) -> Paid:
    """What a method answers and what it is charged; a search for several sparsities is run once, and remembered.

    Args:
        subject: the model and its texts.
        method: the method.
        sparsity: σ.
        seed: of what it draws.
        evaluations: its budget at one sparsity; of a search for several, the share of each.
    """
    targets = subject.all_targets(sparsity) if method.answer_all else (sparsity,)
    which = (method, seed, evaluations, targets)
    if which in subject.remembered:
        return subject.remembered[which][sparsity]
    evaluator = subject.plain if method.plain_reward else subject.evaluator
    evaluator.forget()  # or a method would be answered from what another one measured, and seem faster than it is
    started = time.perf_counter()
    n = len(targets)
    init = subject.start if method.warm is None else policy_for(subject, method.warm, seed)
    problem = Problem.of(evaluator, sparsity, evaluations=n * evaluations, seed=seed, targets=targets, init=init)
    meter = problem.meter
    if method.answer_all is None:
        found = {sparsity: Found(method.answer(problem), meter.trace)}
    else:
        found = dict(method.answer_all(problem))
    seconds = time.perf_counter() - started
    shares = {
        target: Paid(
            kept=one.allocation.kept,
            trace=[(spent / n, kept) for spent, kept in one.trace],
            budget=meter.budget / n,
            spent=meter.spent / n,
            seen=meter.seen / n,
            seconds=seconds / n,
            candidates=meter.candidates / n,
            learned=problem.learned[-1] if problem.learned else None,
        )
        for target, one in found.items()
    }
    if method.answer_all is not None:
        subject.remembered[which] = shares
    return shares[sparsity]


def policy_for(subject: Subject, warm: WarmStart, seed: int) -> Policy:
    """What another search of this comparison has learnt; ValueError if there is none."""
    if subject.policies is None:
        raise ValueError(f"nothing is kept of what {warm.method} has learnt: a folder of a comparison is needed")
    return subject.policies.find(warm.method, warm.sparsity, seed)


def progress(paid: Paid, evaluator: LMEvaluator) -> list[tuple[float, float]]:
    """What the method would have returned after parts of its budget: (windows spent, perplexity on N_max windows).

    Args:
        paid: what the method answered, with what it noted on the way.
        evaluator: measures, the same for all methods, whatever they were rewarded for.
    """
    points = []
    for mark in MARKS:
        noted = [kept for spent, kept in paid.trace if spent <= mark * paid.budget]
        if noted:
            ppl = evaluator.text_evaluator.measure(noted[-1], evaluator.max_samples)
            points.append((min(round(mark * paid.budget), paid.spent), ppl))
    return points
