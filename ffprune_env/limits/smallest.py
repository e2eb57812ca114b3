"""The smallest model of a policy that loses no more than a limit, with confidence, on text that nobody else saw."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch

from ffprune_env.budget.allocation import Allocation
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.limits.bracket import DECIMALS, highest_meeting
from ffprune_env.limits.limit import Limit
from ffprune_env.limits.trial_log import Measured, TrialLog
from ffprune_env.lm.intervals import upper_bound
from ffprune_env.lm.loss import perplexity_of, window_losses
from ffprune_env.lm.phases import phase, windows_size
from ffprune_env.pruning.calibration_kind import CalibrationKind, calibration_kind
from ffprune_env.search.saved_policy import Policy

logger = logging.getLogger(__name__)

#: How far apart, in σ, the answer and the next that misses the limit may be.
WIDTH = 0.002
#: Eqs. 6-7 alone only say where to begin, where models are calibrated in sequence, which takes many times as long.
_FIRST_WIDTH = 0.01
# Where nothing is known, the first step is so small a part of the range.
_FIRST_STEPS = 8
#: By so much fewer parameters the model is smaller that shows that the answer is the smallest.
SMALLER = 0.02


@dataclass(frozen=True, eq=False)
class Trial:
    """One model, calibrated as it would be written and measured beside the dense one on the same windows.

    Attributes:
        sparsity: σ that the policy was asked for.
        allocation: what it said.
        params: parameters that stay.
        calibration: what the surviving weights were re-fitted with.
        written: whether a model that is written would be; otherwise it only said where to look.
        loss: how much higher the mean loss is than the dense model's, in nats.
        bound: what that is below with 95 % confidence.
    """

    sparsity: float
    allocation: Allocation
    params: int
    calibration: CalibrationKind
    written: bool
    loss: float
    bound: float

    @property
    def percent(self) -> tuple[float, float]:
        """PPL / PPL_dense - 1 as it was measured, and what it is below with confidence."""
        return _risen(self.loss), _risen(self.bound)


@dataclass(frozen=True, eq=False)
class Smallest:
    """What was found.

    Attributes:
        limit: what was asked for.
        answer: the smallest model that meets it.
        missed: the next larger σ that was tried and misses it; None where the highest σ of the policy meets it.
        smaller: a model with 2 % fewer parameters, which misses it; None where the policy knows none so small.
        trials: all that was tried, in order.
        most: the limit in nats.
        dense_ppl: perplexity of the dense model on these windows.
        windows: their shape.
        low: the lowest σ that the policy knows.
        high: the highest.
    """

    limit: Limit
    answer: Trial
    missed: Trial | None
    smaller: Trial | None
    trials: tuple[Trial, ...]
    most: float
    dense_ppl: float
    windows: tuple[int, ...]
    low: float
    high: float


class LimitMissedError(ValueError):
    """No model of the policy meets the limit."""


def smallest_model(
    policy: Policy, evaluator: LMEvaluator, limit: Limit, windows: torch.Tensor, log: TrialLog | None = None
) -> Smallest:
    """Searches over σ for the smallest model whose loss is below a limit with 95 % confidence.

    The windows are the same for all models and for the dense one, so that the differences window by window say how
    large the loss may be (:func:`~ffprune_env.lm.intervals.upper_bound`). A model meets the limit if that bound does.
    Losses need not rise with σ: the answer was measured itself, and so was a model with 2 % fewer parameters, which
    misses the limit; where it meets it the search goes on from there.

    Args:
        policy: what to keep at every σ.
        evaluator: the dense model and its calibration.
        limit: what may be lost.
        windows: int64 [n, seq_len], text that neither search nor calibration nor the reported figures see.
        log: models that were measured before, by a process that was interrupted or for another limit; those that are
            measured now are added.

    Raises:
        LimitMissedError: no σ of the policy meets the limit; the message says what comes nearest.
        ValueError: the dense model does not meet it, or there are too few windows.
    """
    with phase("the smallest model", f"{limit}, on {windows_size(tuple(windows.shape))}"):
        trials = _Trials(policy, evaluator, limit, windows, log)
        low, high = trials.low, trials.high
        guess, step = (low + high) / 2, (high - low) / _FIRST_STEPS
        if evaluator.calibration_asked == "sequential":
            met, _ = highest_meeting(trials.roughly, low, high, guess, step, _FIRST_WIDTH, trials.same)
            guess, step = low if met is None else met, _FIRST_WIDTH
        while True:
            met, missed = highest_meeting(trials.excess, low, high, guess, step, WIDTH, trials.same)
            if met is None:
                raise LimitMissedError(trials.none_meets())
            answer = trials.made(met)
            smaller = None if missed is None else trials.smaller_than(answer)
            if smaller is None or smaller.bound > trials.most:
                break
            guess = low = smaller.sparsity  # losses do not rise here: from there on
        return Smallest(
            limit, answer, None if missed is None else trials.made(missed), smaller, tuple(trials.every), trials.most,
            trials.dense_ppl, tuple(windows.shape), trials.low, trials.high,
        )  # fmt: skip


class _Trials:
    """Models that were measured; none is measured twice."""

    def __init__(
        self, policy: Policy, evaluator: LMEvaluator, limit: Limit, windows: torch.Tensor, log: TrialLog | None
    ) -> None:
        self.policy, self.evaluator, self.limit, self.windows = policy, evaluator, limit, windows
        self._log = log
        self._dense = window_losses(evaluator.prunable.model, windows, evaluator.batch_size).double()
        self.dense_ppl = perplexity_of(self._dense)
        self.most = limit.most(self.dense_ppl)
        self.low, self.high = float(policy.knots[0]), float(policy.knots[-1])
        self.every: list[Trial] = []
        self._known: dict[tuple[bytes, bool], Trial] = {}

    def excess(self, sparsity: float) -> float:
        """By how much the model that would be written misses the limit, in nats."""
        return self.made(sparsity).bound - self.most

    def roughly(self, sparsity: float) -> float:
        """The same of the model calibrated by Eqs. 6-7 alone."""
        return self._trial(sparsity, final=False).bound - self.most

    def made(self, sparsity: float) -> Trial:
        """The model that would be written."""
        return self._trial(sparsity, final=True)

    def same(self, one: float, other: float) -> bool:
        """Whether the policy says the same at both."""
        return bool((self.policy.allocate(one).kept == self.policy.allocate(other).kept).all())

    def smaller_than(self, answer: Trial) -> Trial | None:
        """The largest model that has 2 % fewer parameters; None where the policy has none."""
        most, prunable = (1 - SMALLER) * answer.params, self.evaluator.prunable

        def small(sparsity: float) -> bool:
            return prunable.params(self.policy.allocate(sparsity).kept) <= most

        large, enough = answer.sparsity, self.high
        if not small(enough):
            return None
        while enough - large > 1.5 / 10**DECIMALS:
            middle = round((large + enough) / 2, DECIMALS)
            large, enough = (large, middle) if small(middle) else (middle, enough)
        return self.made(enough)

    def none_meets(self) -> str:
        """That no model meets the limit, and what the best one loses."""
        best = min((trial for trial in self.every if trial.written), key=lambda trial: trial.bound)
        loses, below = best.percent
        return (
            f"{self.limit} is met at no sparsity from {self.low:g} to {self.high:g}, which the policy knows: the best "
            f"that was seen, at {best.sparsity:g}, loses {loses:.1%}, and less than {below:.1%} with 95 % confidence; "
            f"allow more, or search lower sparsities"
        )

    def _trial(self, sparsity: float, final: bool) -> Trial:
        allocation, evaluator = self.policy.allocate(sparsity), self.evaluator
        key = (allocation.kept.tobytes(), final)
        if key not in self._known:
            before = self._measured_before(allocation, final)
            found = self._measure(allocation, final) if before is None else before
            loss = float(found.differences.mean()) if np.isfinite(found.differences).all() else math.inf
            trial = Trial(
                sparsity, allocation, evaluator.prunable.params(allocation.kept), found.calibration, final, loss,
                upper_bound(found.differences),
            )  # fmt: skip
            self._known[key] = trial
            self.every.append(trial)
            loses, below = trial.percent
            logger.info(
                "sparsity %g, %s: loses %.2f %%, less than %.2f %%%s",
                sparsity,
                trial.calibration,
                100 * loses,
                100 * below,
                "" if before is None else "; it was measured before",
            )
        return self._known[key]

    def _measured_before(self, allocation: Allocation, final: bool) -> Measured | None:
        """What the log says; one that fell back to another calibration, for want of memory, is tried again."""
        found = None if self._log is None else self._log.find(allocation.kept, final)
        fell_back = found is not None and final and found.calibration != self.evaluator.calibration_asked
        return None if fell_back else found

    def _measure(self, allocation: Allocation, final: bool) -> Measured:
        evaluator, kept = self.evaluator, allocation.kept
        calibration = evaluator.final_calibration(kept) if final else evaluator.calibration
        with evaluator.prunable.pruned(kept, calibration) as model:
            losses = window_losses(model, self.windows, evaluator.batch_size)
        found = Measured(calibration_kind(calibration), (losses.double() - self._dense).numpy())
        if self._log is not None:
            self._log.note(kept, final, found)
        return found


def _risen(nats: float) -> float:
    try:
        return math.expm1(nats)
    except OverflowError:
        return math.inf
