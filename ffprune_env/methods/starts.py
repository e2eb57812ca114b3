"""Where the mean of a policy starts: knowledge about the model, another run, or nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ffprune_env.allocation import Allocation, FloatArray
from ffprune_env.budget import waterfill_scores
from ffprune_env.methods.even import ffn_only
from ffprune_env.methods.fisher import CURVE_TOKENS, fisher
from ffprune_env.methods.fisher_iterated import fisher_iterated, step_windows
from ffprune_env.methods.problem import Problem
from ffprune_env.methods.search_settings import SearchSettings
from ffprune_env.pruning.backward import spread_windows
from ffprune_env.saved_policy import read_policy

logger = logging.getLogger(__name__)

#: What a policy's mean can start from, by the name that ``--init`` uses.
STARTS: dict[str, Callable[[Problem, SearchSettings], Allocation]] = {
    "ffn-only": lambda problem, settings: ffn_only(problem.sparsity, problem.meter.units),
    "fisher": lambda problem, settings: fisher(problem),
    "fisher-iterated": lambda problem, settings: fisher_iterated(problem, settings.init_steps),
}
#: Those that look at gradients, and pay for them.
LOOKING = ("fisher", "fisher-iterated")


def start_scores(settings: SearchSettings, problem: Problem) -> FloatArray:
    """The scores that the policy's mean starts from; where it cannot be reached, `ffn-only` or equal ones.

    Args:
        settings: of the search; ``init`` says where it starts.
        problem: of the same sparsity and bounds.

    Raises:
        ValueError: ``init`` is neither the name of a start nor a run with a policy that fits.
    """
    equal = np.zeros(len(problem.meter.units))
    if settings.init == "none":
        return equal
    if settings.init not in STARTS:
        saved = read_policy(settings.init, problem.meter.units, settings.meaning())
        return saved.mean(problem.sparsity) * settings.action_scale
    if settings.mapping == "greedy":
        logger.warning("greedy keeps the order of scores alone, which cannot say %s: starting equal", settings.init)
        return equal
    for init in dict.fromkeys((settings.init, "ffn-only")):
        try:
            rates = STARTS[init](problem, settings).rates
        except ValueError as error:
            logger.warning("the search does not start from %s: %s", init, error)
        else:
            return waterfill_scores(rates, settings.a_min, settings.a_max)
    return equal


def read_starts(file: Path, targets: Sequence[float], n_units: int) -> dict[float, FloatArray] | None:
    """The scores that a run which was cut off started from, by target, so that they are not looked for again.

    Args:
        file: ``start.json`` of its folder.
        targets: its target sparsities.
        n_units: N.

    Returns:
        [N] scores per target; None if the run was cut off before it had any.

    Raises:
        ValueError: the file is damaged.
    """
    if not file.exists():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        starts = {target: np.array(saved[str(target)], dtype=np.float64) for target in targets}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged, remove it to look for the start again: {error!r}") from error
    if not all(scores.shape == (n_units,) and np.isfinite(scores).all() for scores in starts.values()):
        raise ValueError(f"{file} does not hold {n_units} scores per target: remove it to look for the start again")
    return starts


def start_cost(settings: SearchSettings, problem: Problem) -> int:
    """What the start costs, in windows of search text: a backward pass is counted as two forward passes."""
    if problem.windows is None or settings.mapping == "greedy" or settings.init not in LOOKING:
        return 0
    cost = 3 * len(spread_windows(problem.windows, CURVE_TOKENS))
    if settings.init == "fisher-iterated":
        cost += settings.init_steps * 3 * len(step_windows(problem.windows, 0))
    return cost


def cheap_enough(settings: SearchSettings, problem: Problem) -> SearchSettings:
    """The settings with a start that leaves a rollout and the finalists: fewer steps, or another start.

    Knowledge comes first: on held-out text another step was worth more than the evaluations that it costs.
    """
    if settings.init not in LOOKING:
        return settings
    meter = problem.meter
    rollout = replace(settings, samples=meter.max_samples, final_samples=meter.all_samples, timesteps=settings.n_steps)
    afforded = meter.budget - rollout.windows()
    cheaper = [replace(settings, init=init) for init in ("fisher", "ffn-only")]
    if settings.init == "fisher-iterated":
        cheaper = [replace(settings, init_steps=steps) for steps in range(settings.init_steps, 1, -1)] + cheaper
    return next((x for x in cheaper if start_cost(x, problem) <= afforded), cheaper[-1])
