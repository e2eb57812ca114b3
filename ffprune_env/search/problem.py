"""Problem: the question that every method answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy.typing as npt
import torch

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.budget.mapping import allocate, allocate_rates
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.objectives.reward import written
from ffprune_env.evaluators.objectives.settings import RewardText
from ffprune_env.evaluators.protocol import SearchEvaluator
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import Statistics
from ffprune_env.search.meter import Meter
from ffprune_env.search.saved_policy import Policy

#: Where searches are to start: each where it says itself, at equal rates, or with attention whole.
StartName = Literal["own", "none", "ffn-only"]


@dataclass(frozen=True)
class Problem:
    """How much of every unit to keep: the question that every method answers.

    Attributes:
        prunable: the ranked model, dense now; None where the evaluator stands for one.
        stats: its statistics; None as above.
        meter: what to measure with, and how much.
        sparsity: σ, the fraction of Σ w to remove.
        seed: of everything that is drawn.
        a_min: lowest retention rate that a search may give a unit.
        a_max: highest.
        calibration: what re-fits the model that is rewarded; None if it is only cut.
        windows: int64 [n, seq_len], search text for methods that look at gradients; None as for ``prunable``. Not
            calibration text, on which the calibrated model is better than it is.
        targets: all sparsities that are asked about, for a method that answers them together; empty stands for
            ``sparsity`` alone.
        init: where searches start: ``own``, where each says itself; ``none``, at `uniform`, which equal scores stand
            for; ``ffn-only``; or what another search has learnt.
        learned: what searches by PPO have learnt of this problem, which they put here for others to start from.
        reward: what is rewarded, as ``--reward`` has it: what the meter measures is made a reward of by its kind.
    """

    prunable: PrunableModel | None
    stats: Statistics | None
    meter: Meter
    sparsity: float
    seed: int
    a_min: float = 0.2
    a_max: float = 1.0
    calibration: RidgeCalibration | None = None
    windows: torch.Tensor | None = None
    targets: tuple[float, ...] = ()
    init: StartName | Policy = "own"
    learned: list[Policy] = field(default_factory=list)
    reward: RewardText = "ppl"

    @classmethod
    def of(
        cls,
        evaluator: SearchEvaluator,
        sparsity: float,
        *,
        evaluations: int = 0,
        seed: int = 0,
        a_min: float = 0.2,
        a_max: float = 1.0,
        targets: tuple[float, ...] = (),
        init: StartName | Policy = "own",
    ) -> Problem:
        """The question, and what an evaluator knows that helps to answer it.

        Args:
            evaluator: what is measured with. Of a language model everything is taken that a method may look at.
            sparsity: σ.
            evaluations: how often may be measured, on N_max windows.
            seed: of everything that is drawn.
            a_min: lowest retention rate.
            a_max: highest.
            targets: all sparsities that are asked about.
            init: where searches start.
        """
        meter = Meter(evaluator, evaluations)
        if not isinstance(evaluator, LMEvaluator):
            return cls(None, None, meter, sparsity, seed, a_min, a_max, targets=targets, init=init)
        rewarded = evaluator.calibration if evaluator.calibrated else None
        windows = evaluator.texts.get("curves")
        known = evaluator.prunable, evaluator.statistics
        mix = evaluator.rewarded
        # exp of a divergence stands in the place of perplexity, and dense / pruned is its reward.
        reward = "ppl" if mix is None or mix.kind == "kl" else written(mix)
        return cls(*known, meter, sparsity, seed, a_min, a_max, rewarded, windows, targets, init, reward=reward)

    @property
    def units(self) -> tuple[PruneUnit, ...]:
        """The N units."""
        return self.meter.units

    def allocate(self, rates: npt.ArrayLike) -> Allocation:
        """Rates moved by one constant to meet the budget: see :func:`~ffprune_env.budget.mapping.allocate_rates`."""
        return allocate_rates(rates, self.sparsity, self.units, a_min=self.a_min, a_max=self.a_max)

    def look_inside(self, method: str) -> tuple[PrunableModel, torch.Tensor]:
        """The model, and text to look at it with; ValueError if there is none, naming the method that looked."""
        if self.prunable is None or self.windows is None:
            raise ValueError(f"{method} looks at gradients: it needs a model and search text")
        return self.prunable, self.windows

    def start(self) -> FloatArray:
        """The rates that searches start from: `ffn-only` where that reaches σ, else `uniform`; or as ``init`` says."""
        if isinstance(self.init, Policy):
            bounds = {"a_min": self.a_min, "a_max": self.a_max, "mapping": self.init.meaning["mapping"]}
            return allocate(self.init.scores(self.sparsity), self.sparsity, self.units, **bounds).rates
        if self.init == "none":
            return uniform(self.sparsity, self.units).rates
        try:
            return ffn_only(self.sparsity, self.units).rates
        except ValueError:
            return uniform(self.sparsity, self.units).rates
