"""A language model that is measured by something else than the perplexity of text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.objectives.build import build_objectives
from ffprune_env.evaluators.objectives.mix import REPORTED, Objectives
from ffprune_env.evaluators.objectives.reward import PERPLEXITY, mix_of
from ffprune_env.evaluators.objectives.shares import HELD_OUT, Counts, Place
from ffprune_env.evaluators.protocol import Windows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class RewardedEvaluator(LMEvaluator):
    """Measures other things of the same model, on bundles that go along with the windows of text.

    What is measured takes the place of perplexity: it is exp of a loss in nats, so that dense / pruned is the reward,
    finalists are ranked by it, and every method of a comparison minimizes it. Damage curves stay those of the loss of
    text. It remembers its own answers and shares everything else.

    Args:
        of: measures text.
        objectives: what is measured.
        stands_in: whether that is in the place of perplexity at every step, too. Otherwise (``kl``) finalists alone are
            ranked by it, and :meth:`compare` measures it at a step.
        function: a function that was given as itself.
    """

    def __init__(
        self,
        of: LMEvaluator,
        objectives: Objectives,
        stands_in: bool = True,
        function: Callable[..., Any] | None = None,
    ) -> None:
        vars(self).update(vars(of))  # one model, one calibration, one order of groups
        self._of, self.objectives, self.function, self.stands_in = of, objectives, function, stands_in
        self.rewarded = objectives.reward
        self._measured, self._dense, self._divergences = {}, {}, {}
        if not math.isfinite(self.dense(len(self.windows))):
            raise ValueError("what the reward measures of the dense model is not finite: check weights and data")

    @property
    def text_evaluator(self) -> LMEvaluator:
        """The evaluator that it was made from."""
        return self._of

    @property
    def pool(self) -> tuple[int, ...]:
        """Indices of the windows to draw from that there are bundles for."""
        return super().pool[: min([len(super().pool), *self.objectives.pools])]

    def compare(self, kept: IntArray, n_samples: Windows) -> tuple[float, float]:
        """Perplexity of text and divergence there, which are remembered apart from what stands in their place."""
        return self._of.compare(kept, n_samples) if self.stands_in else super().compare(kept, n_samples)

    def forget(self) -> None:
        """Drops also what was measured of text."""
        super().forget()
        self._of.forget()

    def held_out(self, test_windows: torch.Tensor) -> Callable[[PreTrainedModel], dict[str, float]]:
        """What measures a model on data that no search sees; the model is dense when this is called.

        Args:
            test_windows: int64 [n, seq_len], what stands there for text.

        Returns:
            A function of the model, dense or pruned, to ``loss`` and what that is made of, by name.
        """
        self.prunable.require_dense("look at what is held out")
        self.objectives.texts[HELD_OUT] = test_windows
        self.objectives.prepare(self.prunable.model, REPORTED)
        return self.objectives.reported

    @property
    def _adds_up(self) -> bool:
        return not self.stands_in

    def _cost(self, model: PreTrainedModel, place: Place) -> float:
        return self.objectives.cost(model, place) if self.stands_in else super()._cost(model, place)

    def _losses(self, model: PreTrainedModel, place: Place) -> FloatArray:
        return np.log([self.objectives.cost(model, place)])

    def _prepare(self, place: Place) -> None:
        if self.stands_in or place[0] == "finalists":
            self.objectives.prepare(self.prunable.model, place)

    def _asked(self, n_samples: Windows) -> Windows:
        # A function says the same whatever windows there are.
        return n_samples if self.objectives.reward.reads_data or not self.stands_in else 1


def identity_of_reward(evaluator: LMEvaluator) -> dict[str, str]:
    """Digests of what a reward is measured on and by, beside windows of text: questions, conversations, functions."""
    return dict(evaluator.objectives.identity) if isinstance(evaluator, RewardedEvaluator) else {}


def rewarding(evaluator: LMEvaluator, reward: str | Callable[..., Any], stands_in: bool = False) -> LMEvaluator:
    """An evaluator of the same model that measures something else: see :meth:`LMEvaluator.rewarding`.

    Args:
        evaluator: of the model.
        reward: as text, or a function.
        stands_in: let also ``kl`` take the place of perplexity.
    """
    text, function, mix = evaluator.text_evaluator, reward if callable(reward) else None, mix_of(reward)
    if mix == PERPLEXITY:
        return text
    if isinstance(evaluator, RewardedEvaluator) and (evaluator.stands_in or not stands_in):
        known = evaluator.function is function if function else evaluator.rewarded == mix
        if known:
            return evaluator
    if text.tokenizer is None:
        raise ValueError(f"reward {reward!r} needs a tokenizer: give LMEvaluator one")
    texts = {purpose: text.texts.get(purpose, text.windows[:0]) for purpose in ("finalists", "pool", "watch")}
    counts = Counts(
        search=len(text.windows),
        finalists=len(texts["finalists"]),
        pool=len(texts["pool"]),
        watch=len(texts["watch"]),
        tokens=text.windows.shape[1],
    )
    places = {"search": text.windows, "finalists": texts["finalists"], "further": text.further}
    model = text.prunable.model
    made = build_objectives(mix, model, text.tokenizer, places, counts, text.data_dir, text.batch_size, function)
    return RewardedEvaluator(text, made, stands_in or not mix.of_text, function)
