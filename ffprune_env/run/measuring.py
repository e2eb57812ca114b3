"""Policies are measured, cut and calibrated, on search and on test text, and beside simple ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch

from ffprune_env.budget.allocation import Allocation, whole
from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.even import BASELINES
from ffprune_env.budget.units import PruneUnit, attention_can_be_cut
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.rewarded import RewardedEvaluator
from ffprune_env.lm.cost import counting
from ffprune_env.lm.loss import perplexity_in_steps
from ffprune_env.lm.phases import Advance, phase, windows_size
from ffprune_env.pruning.calibration_kind import calibration_kind
from ffprune_env.pruning.sinks import MANY_LOST, Sinks, find_sinks, lost_sinks
from ffprune_env.run.results import Measured, PolicyResult, label

logger = logging.getLogger(__name__)


def _uncounted(steps: int = 1, note: str = "") -> None:
    """For who does not want to know how far it is."""


def measure_policy(
    evaluator: LMEvaluator,
    kept: IntArray,
    test_windows: torch.Tensor,
    batch_size: int | None = 1,
    calibrated: bool = False,
    advance: Advance = _uncounted,
    sinks: Sinks | None = None,
) -> PolicyResult:
    """Measures one policy on the search text that policies were chosen by, and on test text.

    Args:
        evaluator: the model, its search text and, where it is asked for, its calibration.
        kept: int64 [N], groups kept per unit.
        test_windows: int64 [n, seq_len].
        batch_size: windows per forward pass; None chooses.
        calibrated: re-fit the surviving weights first, whatever the evaluator's reward does.
        advance: called with the number of windows after every batch.
        sinks: of the dense model, for who wants to know how many are lost.
    """
    prunable = evaluator.prunable
    calibration = evaluator.final_calibration(kept) if calibrated else None
    reported = evaluator.held_out(test_windows) if isinstance(evaluator, RewardedEvaluator) else None
    with prunable.pruned(kept, calibration) as model:
        search_ppl = perplexity_in_steps(model, evaluator.chosen_on, batch_size, advance)
        test_ppl = perplexity_in_steps(model, test_windows, batch_size, advance)
        held_out = None if reported is None else reported(model)
        lost = lost_sinks(sinks, model)
    return PolicyResult(
        kept=kept,
        sparsity=prunable.sparsity(kept),
        total_sparsity=prunable.total_sparsity(kept),
        params=prunable.params(kept),
        calibrated=calibrated,
        calibration=calibration_kind(calibration),
        search_ppl=search_ppl,
        test_ppl=test_ppl,
        held_out=held_out,
        lost_sinks=lost,
    )


def measure_policies(
    evaluator: LMEvaluator,
    policies: Mapping[str, Allocation],
    test_windows: torch.Tensor,
    batch_size: int | None = 1,
    before: Measured | None = None,
) -> Measured:
    """Measures every policy as it is cut and, if the evaluator has a calibration, calibrated.

    Args:
        evaluator: as for :func:`measure_policy`, like the two arguments after ``policies``.
        policies: what to keep, by name.
        test_windows: int64 [n, seq_len].
        batch_size: windows per forward pass; None chooses.
        before: policies that were measured already; none of them is measured again.
    """
    size = f"{windows_size(tuple(evaluator.chosen_on.shape))} and {windows_size(tuple(test_windows.shape))}"
    total = len(evaluator.chosen_on) + len(test_windows)
    plain = {} if before is None else dict(before.plain)
    calibrated = {} if before is None else dict(before.calibrated)
    calibrating = {} if before is None else dict(before.calibrating)
    sinks = find_sinks(evaluator.prunable.model, test_windows, evaluator.bos)
    for name, x in policies.items():
        if name in plain:
            continue
        with phase(f"measuring {label(name)}", size, total) as advance:
            plain[name] = measure_policy(evaluator, x.kept, test_windows, batch_size, False, advance, sinks)
    for name, x in policies.items() if evaluator.calibration is not None else ():
        if name in calibrated:
            continue
        if all(x.rates == 1):  # there is nothing to stand in for
            calibrated[name] = replace(plain[name], calibrated=True, calibration=evaluator.calibration_asked)
            continue
        with counting(evaluator.devices) as tally:
            evaluator.final_calibration(x.kept)  # a phase of its own
        calibrating[name] = tally.cost
        with phase(f"measuring {label(name)}, calibrated", size, total) as advance:
            calibrated[name] = measure_policy(evaluator, x.kept, test_windows, batch_size, True, advance, sinks)
    measured = Measured(_in_order(plain), _in_order(calibrated), evaluator.calibration_asked, None, calibrating)
    if "chosen" in policies:
        _warn_of_lost_sinks(evaluator, measured.final["chosen"].lost_sinks)
    saved = None if before is None else before.saved
    return replace(measured, saved=saved)


def _warn_of_lost_sinks(evaluator: LMEvaluator, lost: float | None) -> None:
    if lost is None or lost <= MANY_LOST:
        return
    advice = "a lower sparsity keeps more"
    if evaluator.calibration is None:
        advice = "a calibration restores them (--calibration ridge)"
    elif evaluator.openings is None:
        advice = "--openings 24 lets the calibration see how texts begin"
    logger.warning(
        "the pruned model has lost its attention sink behind %.1f %% of the tokens that a text can begin with, and "
        "predicts badly what begins so: %s",
        100 * lost,
        advice,
    )


def _in_order(results: Mapping[str, PolicyResult]) -> dict[str, PolicyResult]:
    """As tables have them, whatever was measured first."""
    places = {name: i for i, name in enumerate(("dense", *BASELINES))}
    return {name: results[name] for name in sorted(results, key=lambda name: places.get(name, len(places)))}


def reference_policies(sparsity: float, evaluator: LMEvaluator) -> dict[str, Allocation]:
    """What every search is compared with: the dense model, and :func:`baselines`."""
    return {"dense": whole(evaluator.units), **baselines(sparsity, evaluator.units)}


def baselines(sparsity: float, units: tuple[PruneUnit, ...]) -> dict[str, Allocation]:
    """`uniform` and `ffn-only`, as far as they reach the sparsity; one of them where they are the same."""
    policies = {}
    for name, baseline in BASELINES.items():
        if name == "ffn-only" and not attention_can_be_cut(units):
            continue  # `uniform`
        try:
            policies[name] = baseline(sparsity, units)
        except ValueError as error:
            logger.warning("no %s to compare with: %s", name, error)
    return policies
