"""Where the mean of a policy starts: knowledge about the model, another run, or nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.even import ffn_only
from ffprune_env.budget.mapping import allocate, waterfill_scores
from ffprune_env.pruning.backward import spread_windows
from ffprune_env.search.problem import LOOK_COST, Problem
from ffprune_env.search.saved_policy import SavedPolicy, read_policy
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.fisher import CURVE_TOKENS, cheapest, dense_curves, fisher
from ffprune_env.search.starts.fisher_iterated import iterate, step_windows

logger = logging.getLogger(__name__)

Answer = Callable[[float], Allocation]
# Sparsities around the target, as fractions of it, that say which way the mean goes as σ changes.
_AROUND = (0.5, 0.75, 1.25, 1.5)


def _ffn_only(problem: Problem, settings: SearchSettings) -> Answer:
    return lambda sparsity: ffn_only(sparsity, problem.meter.units)


def _fisher(problem: Problem, settings: SearchSettings) -> Answer:
    curves = dense_curves(problem)
    return lambda sparsity: cheapest(replace(problem, sparsity=sparsity), curves)


def _fisher_iterated(problem: Problem, settings: SearchSettings) -> Answer:
    found, curves = iterate(problem, settings.steps)
    return lambda sparsity: (
        found if sparsity == problem.sparsity else cheapest(replace(problem, sparsity=sparsity), curves)
    )


#: What a policy's mean can start from, by the name that ``--init`` uses: looked at once for the sparsity of a problem,
#: the model's answer at this and other sparsities.
STARTS: dict[str, Callable[[Problem, SearchSettings], Answer]] = {
    "ffn-only": _ffn_only,
    "fisher": _fisher,
    "fisher-iterated": _fisher_iterated,
}


def start_scores(settings: SearchSettings, problem: Problem) -> dict[float, FloatArray]:
    """The scores that the policy's mean starts from; where it cannot be reached, `ffn-only` or equal ones.

    One look at the model serves all targets, from the middle of them: what its curves know holds at the others too.

    Args:
        settings: of the search; ``init`` says where it starts.
        problem: of the same bounds; its sparsity does not count.

    Returns:
        [N] scores for every target; for a single one also for some sparsities around it as far as they are known, so
        that the policy knows from the start how the answer changes with σ.

    Raises:
        ValueError: ``init`` is neither the name of a start nor a run with a policy that fits.
    """
    targets = settings.targets
    equal = {target: np.zeros(len(problem.meter.units)) for target in targets}
    if settings.init == "none":
        return equal
    if settings.init not in STARTS:
        saved = read_policy(settings.init, problem.meter.units, settings.meaning())
        return {target: _transferred(saved, settings, replace(problem, sparsity=target)) for target in targets}
    if settings.mapping == "greedy":
        logger.warning("greedy keeps the order of scores alone, which cannot say %s: starting equal", settings.init)
        return equal
    starts: dict[float, FloatArray] = {}
    for init in dict.fromkeys((settings.init, "ffn-only")):
        missing = [target for target in targets if target not in starts]
        if not missing:
            break
        try:
            answer = STARTS[init](replace(problem, sparsity=targets[len(targets) // 2]), settings)
            for target in missing:
                starts[target] = waterfill_scores(answer(target).rates, settings.a_min, settings.a_max)
        except ValueError as error:
            logger.warning("the search does not start from %s: %s", init, error)
            continue
        for factor in _AROUND if len(targets) == 1 else ():
            at = factor * settings.target
            with suppress(ValueError):  # beyond what the bounds or the method can reach
                starts[at] = waterfill_scores(answer(at).rates, settings.a_min, settings.a_max)
    return {target: starts.get(target, equal[target]) for target in targets} | starts


def _transferred(saved: SavedPolicy, settings: SearchSettings, problem: Problem) -> FloatArray:
    """What the policy of another run says of a sparsity, improved by the steps that are asked for.

    Of a sparsity that it was not trained for its guess and `fisher` are about as good, and miss in different ways: the
    steps begin half-way between them, which is better than either.
    """
    scores = saved.guess(problem.sparsity) * settings.action_scale
    if not settings.steps or problem.windows is None:
        return scores
    bounds = {"a_min": settings.a_min, "a_max": settings.a_max}
    there = allocate(scores, problem.sparsity, problem.meter.units, **bounds, mapping=settings.mapping)
    if problem.sparsity not in saved.facts.get("targets", ()):
        there = problem.allocate((there.rates + fisher(problem).rates) / 2)
    return waterfill_scores(iterate(problem, settings.steps, there)[0].rates, **bounds)


def read_starts(file: Path, targets: Sequence[float], n_units: int) -> dict[float, FloatArray] | None:
    """The scores that a run which was cut off started from, by sparsity, so that they are not looked for again.

    Args:
        file: ``start.json`` of its folder.
        targets: its target sparsities.
        n_units: N.

    Returns:
        [N] scores per target, and those around it; None if the run was cut off before it had any.

    Raises:
        ValueError: the file is damaged.
    """
    if not file.exists():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        starts = {float(at): np.array(scores, dtype=np.float64) for at, scores in saved.items()}
        missing = [target for target in targets if target not in starts]
        if missing:
            raise KeyError(*missing)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged, remove it to look for the start again: {error!r}") from error
    if not all(scores.shape == (n_units,) and np.isfinite(scores).all() for scores in starts.values()):
        raise ValueError(f"{file} does not hold {n_units} scores per target: remove it to look for the start again")
    return starts


def start_cost(settings: SearchSettings, problem: Problem) -> int:
    """What the start costs at the most, in windows of search text that are charged."""
    if problem.windows is None or not settings.looks:
        return 0
    steps = settings.steps * len(step_windows(problem.windows, 0))
    return LOOK_COST * (len(spread_windows(problem.windows, CURVE_TOKENS)) + steps)


def cheap_enough(settings: SearchSettings, problem: Problem) -> SearchSettings:
    """The settings with a start that leaves a rollout and one look at the finalists: fewer steps, or another start.

    Knowledge comes first: on held-out text another step was worth more than the evaluations that it costs.
    """
    if not settings.looks:
        return settings
    meter = problem.meter
    once = meter.max_samples
    rollout = replace(settings, samples=once, final_samples=once, timesteps=settings.n_steps)
    afforded = meter.budget - rollout.windows()
    if settings.init not in STARTS:
        fewer = [replace(settings, init_steps=steps) for steps in range(settings.steps, -1, -1)]
        return next((x for x in fewer if start_cost(x, problem) <= afforded), fewer[-1])
    cheaper = [replace(settings, init=init) for init in ("fisher", "ffn-only")]
    if settings.init == "fisher-iterated":
        cheaper = [replace(settings, init_steps=steps) for steps in range(settings.steps, 1, -1)] + cheaper
    return next((x for x in cheaper if start_cost(x, problem) <= afforded), cheaper[-1])
