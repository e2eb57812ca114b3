"""`ppo`: the search of ``train/ppo.py``, within a budget of windows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import IntArray
from ffprune_env.search.affordable import affordable, most_windows
from ffprune_env.search.mean import mean_allocation
from ffprune_env.search.meter import Meter
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import run_search
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.parse import other_run, parse_start
from ffprune_env.search.starts.start import cheap_enough


@dataclass(frozen=True)
class Found:
    """What a search answers at one sparsity.

    Attributes:
        allocation: its answer.
        trace: (windows that the whole search had spent, groups that its answer here would then have kept), ascending.
    """

    allocation: Allocation
    trace: list[tuple[int, IntArray]]


def ppo(problem: Problem, settings: SearchSettings | None = None) -> Allocation:
    """Searches by PPO for as many evaluations as the windows of the budget last.

    Args:
        problem: what to answer.
        settings: of the search; sparsity, windows, bounds, seed, reward and evaluations are the problem's.

    Raises:
        ValueError: the budget does not cover two evaluations and the finalists, or the sparsity is out of range.
    """
    found = search_by_ppo(problem, (problem.sparsity,), settings)[problem.sparsity]
    problem.meter.trace += found.trace
    return found.allocation


def search_by_ppo(
    problem: Problem, targets: tuple[float, ...], settings: SearchSettings | None = None
) -> dict[float, Found]:
    """One search at some sparsities, for as many evaluations as the windows of the budget last.

    Args:
        problem: what to answer; its sparsity does not count.
        targets: the sparsities, each once, ascending.
        settings: of the search; sparsity, windows, bounds, seed, reward and evaluations are the problem's, and so
            is the start if the problem has one. Where that is ``none``, or another search, `ffn-only` is not among
            the last candidates either. What is learnt is added to what the problem keeps of it.

    Raises:
        ValueError: the budget does not cover two evaluations and the finalists, or a sparsity is out of range.
    """
    meter = problem.meter
    if not meter.max_final_samples:
        raise ValueError("ppo ranks its last candidates on windows that no search saw: the evaluator needs finalists")
    settings = settings or SearchSettings()
    fresh = settings.fresh_windows and not settings.ramp_sparsity
    settings = replace(
        settings,
        sparsity=targets,
        search_windows=meter.max_samples,
        final_windows=meter.max_final_samples,
        fresh_windows=bool(meter.pool) and fresh,
        pool_windows=len(meter.pool),
        a_min=problem.a_min,
        a_max=problem.a_max,
        seed=problem.seed,
        reward=problem.reward,
        init=problem.init if problem.init in ("none", "ffn-only") else settings.init,
    )
    left = meter.budget - meter.spent
    rollout_each = settings.rollout * len(targets)
    shortest = most_windows(replace(settings, final_windows=meter.max_samples, evaluations=rollout_each))
    wanted = other_run(problem.init, settings) if isinstance(problem.init, Policy) else parse_start(settings)
    start = cheap_enough(wanted, left - shortest, problem)
    settings = affordable(settings, left - start.cost(problem))
    scores = start.scores(problem, settings.targets)
    means = _Means(settings, meter)
    # Where all are to begin from nothing, what others were not given would make the answer look like a find.
    simple = problem.init in ("own", "ffn-only")
    before = meter.candidates
    outcome = run_search(settings, meter, start, scores, callbacks=[means], simple=simple)
    meter.recount(before, len(outcome.samples))  # the start is measured beside them, and is none
    problem.learned.append(outcome.learned)
    return {
        target: Found(answer.allocation, [*means.traces[target], (meter.spent, answer.allocation.kept)])
        for target, answer in outcome.answers.items()
    }


class _Means(BaseCallback):
    """Notes what the policy's mean keeps at every target after every update.

    Args:
        settings: of the search.
        meter: what it spends from.
    """

    def __init__(self, settings: SearchSettings, meter: Meter) -> None:
        super().__init__()
        self.settings, self.meter = settings, meter
        self.traces: dict[float, list[tuple[int, IntArray]]] = {target: [] for target in settings.targets}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, PPO)
        for target, trace in self.traces.items():
            mean = mean_allocation(replace(self.settings, sparsity=target), self.meter.units, self.model)
            trace.append((self.meter.spent, mean.kept))
