"""`ppo`: the search of ``train/ppo.py``, within a budget of windows."""

from __future__ import annotations

from dataclasses import replace

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ffprune_env.budget.allocation import Allocation
from ffprune_env.search.mean import mean_allocation
from ffprune_env.search.problem import Meter, Problem
from ffprune_env.search.run_search import run_search
from ffprune_env.search.settings import SearchSettings, affordable
from ffprune_env.search.starts.parse import parse_start
from ffprune_env.search.starts.start import cheap_enough


def ppo(problem: Problem, settings: SearchSettings | None = None) -> Allocation:
    """Searches by PPO for as many evaluations as the windows of the budget last.

    Args:
        problem: what to answer.
        settings: of the search; sparsity, windows, bounds, seed and evaluations are the problem's.

    Raises:
        ValueError: the budget does not cover two evaluations and the finalists, or the sparsity is out of range.
    """
    meter = problem.meter
    if not meter.max_final_samples:
        raise ValueError("ppo ranks its last candidates on windows that no search saw: the evaluator needs finalists")
    settings = replace(
        settings or SearchSettings(),
        sparsity=problem.sparsity,
        search_windows=meter.max_samples,
        final_windows=meter.max_final_samples,
        a_min=problem.a_min,
        a_max=problem.a_max,
        seed=problem.seed,
    )
    left = meter.budget - meter.spent
    shortest = replace(settings, final_windows=meter.max_samples, evaluations=settings.rollout).windows()
    start = cheap_enough(parse_start(settings), left - shortest, problem)
    settings = affordable(settings, left - start.cost(problem))
    scores = start.scores(problem, settings.targets)
    outcome = run_search(settings, meter, start, scores, callbacks=[_NoteMean(settings, meter)])
    chosen = outcome.answers[problem.sparsity]
    meter.note(chosen.allocation)
    return chosen.allocation


class _NoteMean(BaseCallback):
    """Notes what the policy's mean keeps after every update.

    Args:
        settings: of the search.
        meter: where it is noted.
    """

    def __init__(self, settings: SearchSettings, meter: Meter) -> None:
        super().__init__()
        self.settings, self.meter = settings, meter

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, PPO)
        self.meter.note(mean_allocation(self.settings, self.meter.units, self.model))
