"""What is reported about a policy: its size and its perplexity on search and on test text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.lm.cost import Cost
from ffprune_env.pruning.calibration_kind import CalibrationKind


@dataclass(frozen=True)
class PolicyResult:
    """One policy, measured; the objects of ``best.json``.

    Attributes:
        kept: int64 [N], groups kept per unit.
        sparsity: fraction of Σ w removed.
        total_sparsity: fraction of all parameters of the model removed.
        params: parameters that stay.
        calibrated: whether the surviving weights were re-fitted.
        calibration: with what, as :func:`~ffprune_env.pruning.calibration_kind.calibration_kind` names it.
        search_ppl: perplexity on the windows of search text that policies were chosen by: those that the search
            measured on, and those that its finalists were ranked on.
        test_ppl: perplexity on test text.
        held_out: what the reward measures on data that no search saw, where that is not test text alone: ``loss``, and
            what it is made of, by name.
        lost_sinks: share of the tokens of test text that the dense model marks as the first of a window, for heads to
            attend to, and this one does not; None where the dense one marks none, or nobody looked.
    """

    kept: IntArray
    sparsity: float
    total_sparsity: float
    params: int
    calibrated: bool
    calibration: CalibrationKind
    search_ppl: float
    test_ppl: float
    held_out: dict[str, float] | None = None
    lost_sinks: float | None = None


@dataclass(frozen=True)
class Measured:
    """All policies of a run.

    Attributes:
        plain: results by name, as the models were cut; one named ``chosen`` is called searched.
        calibrated: the same with the surviving weights re-fitted; empty without calibration.
        asked: how those were to be calibrated; some may not be, see
            :meth:`~ffprune_env.evaluators.language_model.LMEvaluator.final_calibration`.
        saved: the chosen policy measured again on the model that was read back from disk, if it was written.
        calibrating: by name, what it cost to re-fit the surviving weights, where that was not done before.
    """

    plain: dict[str, PolicyResult]
    calibrated: dict[str, PolicyResult]
    asked: CalibrationKind
    saved: PolicyResult | None = None
    calibrating: dict[str, Cost] = field(default_factory=dict)

    @property
    def final(self) -> dict[str, PolicyResult]:
        """What the user gets: calibrated, if there is a calibration."""
        return self.calibrated or self.plain


def best_policy(evaluator: LMEvaluator, results: Measured, scores: FloatArray, chosen: Allocation) -> dict[str, Any]:
    """What ``best.json`` holds of a search: every policy, cut and calibrated, and how the chosen one came about.

    Args:
        evaluator: what the policies were measured with.
        results: of the policies; one is named ``chosen``.
        scores: float64 [N], the chosen policy's.
        chosen: what they were mapped to.

    Returns:
        Results by name, and once more under ``calibration`` if there is one; ``saved`` if the model was written.
    """
    content: dict[str, Any] = {name: asdict(result) for name, result in results.plain.items()}
    content["chosen"] |= {"scores": scores, "rates": chosen.rates}
    if evaluator.calibration is not None:
        content["calibration"] = {name: asdict(result) for name, result in results.calibrated.items()}
        content["ridge_raised"] = evaluator.calibration.raised()
        content["sequential"] = results.calibrated["chosen"].calibration == "sequential"
    if results.saved is not None:
        content["saved"] = asdict(results.saved)
    return content


def label(name: str) -> str:
    """What people call a policy of ``best.json``."""
    return "searched" if name == "chosen" else name
