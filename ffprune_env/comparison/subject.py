"""What methods are compared on: one model, its texts, and how all of their answers are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ffprune_env.comparison.policies import KeptPolicies
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.rewarded import RewardedEvaluator
from ffprune_env.lm.intervals import perplexity_interval
from ffprune_env.lm.loss import perplexity_of, window_losses
from ffprune_env.search.problem import StartName

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ffprune_env.comparison.answers import Paid
    from ffprune_env.evaluators.zero_shot import ZeroShot

ZeroShotTest = Callable[["PreTrainedModel"], "ZeroShot"]


@dataclass(frozen=True)
class Subject:
    """The model that methods are compared on, and all that is the same for every one of them.

    Attributes:
        evaluator: the model, its search text, calibration and statistics; its reward is what searches see.
        plain: the same with the model that is only cut as reward.
        calibration_windows: int64 [n, seq_len], what statistics and calibration were made from.
        test_windows: int64 [n, seq_len].
        batch_size: windows per forward pass, fewer where memory runs out; None chooses. Methods that rebuild weights
            take it as it is, and one window where it is None.
        zero_shot: what to ask the final models, if anything.
        targets: all sparsities that are compared at, for methods that answer them by one search.
        start: where searches start.
        policies: where searches leave what they have learnt, and others take it from; None keeps nothing.
        remembered: what such searches found, so that the next sparsity takes it from here; of this subject alone.
    """

    evaluator: LMEvaluator
    plain: LMEvaluator
    calibration_windows: torch.Tensor
    test_windows: torch.Tensor
    batch_size: int | None = None
    zero_shot: ZeroShotTest | None = None
    targets: tuple[float, ...] = ()
    start: StartName = "own"
    policies: KeptPolicies | None = None
    remembered: dict[Hashable, dict[float, Paid]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def all_targets(self, sparsity: float) -> tuple[float, ...]:
        """All sparsities that are compared at, ascending, of which ``sparsity`` is one."""
        return tuple(sorted({*self.targets, sparsity}))

    def test(self, model: PreTrainedModel) -> tuple[float, tuple[float, float] | None]:
        """Perplexity of a model on test text, with its interval if there is one."""
        losses = window_losses(model, self.test_windows, self.batch_size)
        return perplexity_of(losses), perplexity_interval(losses)

    def held_out(self) -> Callable[[PreTrainedModel], dict[str, float] | None]:
        """What measures a final model by the reward on data that no search saw; it says None where text is rewarded.

        The model is dense when this is called, and nothing else is measured in between.
        """
        if isinstance(self.evaluator, RewardedEvaluator):
            return self.evaluator.held_out(self.test_windows)
        return lambda model: None

    def ask(self, model: PreTrainedModel) -> tuple[dict[str, float] | None, dict[str, float] | None]:
        """Accuracies of a model on the zero-shot tasks and of their average, and standard errors; None if not asked.

        A task that the model has no finite likelihoods on is left out, and with it the average.
        """
        if self.zero_shot is None:
            return None, None
        asked = self.zero_shot(model)
        scores = {name: result.score for name, result in asked.tasks.items()} | {"average": asked.average}
        scores = {name: score for name, score in scores.items() if not math.isnan(score)}
        stderrs = {name: result.score_stderr for name, result in asked.tasks.items()}
        known = {name: x for name, x in (stderrs | {"average": asked.average_stderr}).items() if x is not None}
        return scores, known
