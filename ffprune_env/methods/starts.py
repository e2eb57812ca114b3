"""Where the mean of a policy starts: knowledge about the model, another run, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ffprune_env.allocation import Allocation, FloatArray
from ffprune_env.budget import waterfill_scores
from ffprune_env.methods.even import ffn_only
from ffprune_env.methods.fisher import CURVE_TOKENS, fisher
from ffprune_env.methods.fisher_iterated import STEP_TOKENS, STEPS, fisher_iterated
from ffprune_env.methods.problem import Problem
from ffprune_env.methods.search_settings import SearchSettings
from ffprune_env.pruning.backward import spread_windows
from ffprune_env.saved_policy import read_policy

logger = logging.getLogger(__name__)

#: What a policy's mean can start from, by the name that ``--init`` uses.
STARTS: dict[str, Callable[[Problem], Allocation]] = {
    "ffn-only": lambda problem: ffn_only(problem.sparsity, problem.meter.units),
    "fisher": fisher,
    "fisher-iterated": fisher_iterated,
}


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
            rates = STARTS[init](problem).rates
        except ValueError as error:
            logger.warning("the search does not start from %s: %s", init, error)
        else:
            return waterfill_scores(rates, settings.a_min, settings.a_max)
    return equal


def start_cost(settings: SearchSettings, problem: Problem) -> int:
    """What the start costs, in windows of search text: a backward pass is counted as two forward passes."""
    texts = {"fisher": [CURVE_TOKENS], "fisher-iterated": [CURVE_TOKENS] + STEPS * [STEP_TOKENS]}.get(settings.init, [])
    if problem.windows is None or settings.mapping == "greedy":
        return 0
    return sum(3 * len(spread_windows(problem.windows, tokens)) for tokens in texts)


def cheap_enough(settings: SearchSettings, problem: Problem) -> SearchSettings:
    """The settings with a start that leaves half of the budget, and a rollout: theirs, or the next cheaper one."""
    meter = problem.meter
    rollout = replace(settings, samples=meter.max_samples, final_samples=meter.max_samples, timesteps=settings.n_steps)
    starts = list(reversed(STARTS))  # the last costs nothing
    for init in starts[starts.index(settings.init) :] if settings.init in STARTS else []:
        settings = replace(settings, init=init)
        cost = start_cost(settings, problem)
        if 2 * cost <= meter.budget and cost + rollout.windows() <= meter.budget:
            break
    return settings
