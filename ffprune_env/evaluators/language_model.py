"""A real model that is measured on text (docs/design.md, 4.8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators.final_calibration import FinalCalibration
from ffprune_env.evaluators.objectives.shares import Place
from ffprune_env.evaluators.protocol import Windows
from ffprune_env.lm.devices import devices_held
from ffprune_env.lm.divergence import compare_with_dense, final_hidden_states
from ffprune_env.lm.loss import perplexity_of, window_losses
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.calibration_kind import CalibrationKind
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import Statistics
from ffprune_env.pruning.sequential import WeightCalibration
from ffprune_env.texts.bos import BosProtocol

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ffprune_env.evaluators.objectives.reward import RewardMix


def _perplexity(model: PreTrainedModel, windows: torch.Tensor, batch_size: int | None) -> float:
    """Perplexity without the look at a few tokens that ``ffprune_env.perplexity`` takes at every call.

    Here only pruning changes the model.
    """
    return perplexity_of(window_losses(model, windows, batch_size))


class LMEvaluator:
    """Measures a real language model on windows of search text; the same question is answered once.

    Args:
        prunable: a ranked model.
        windows: int64 [N_max, seq_len], search text.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.
        calibration: what the surviving weights are re-fitted with in the model that the user will get, if at all.
        calibrated: measure that model, not the one that is only cut. The product that re-fits the weights is then
            taken in the dtype of the weights, which is exact enough for a reward.
        statistics: what the groups were ranked by, for methods that look at it; its Gram matrices are not kept.
        sequential: calibrate the model that the user will get once more, in sequence, on ``texts["calibration"]``.
        texts: further windows, int64 [n, seq_len], by purpose, as :mod:`ffprune_env.texts.window_plan` shares them
            out: on ``finalists`` a search ranks its last candidates. Those of ``pool``, then those of ``watch``, can be
            measured on by index.
        bos: whether all of these windows begin with the BOS token, for who reports what was measured.
        tokenizer: of the model, for :meth:`rewarding` anything but text.
        data_dir: where that reads the questions of lm-eval's tasks; None takes the hub's.
        openings: int64 [m, 1], windows of one token that calibrations in sequence see, too
            (:mod:`ffprune_env.texts.openings`).

    Attributes:
        texts: these, and the windows that are measured on, as ``search``.
        further: int64 [n, seq_len], the windows of the pool, then those to watch on.
        in_sequence: what calibrates the model that the user will get in sequence; None where that is not asked for.
        rewarded: what it measures, where it is not the perplexity of text: see :meth:`rewarding`.

    Raises:
        ValueError: there is no window, the dense model's perplexity is not finite, or there is no calibration to use.
    """

    def __init__(
        self,
        prunable: PrunableModel,
        windows: torch.Tensor,
        batch_size: int | None = 1,
        calibration: RidgeCalibration | None = None,
        calibrated: bool = False,
        statistics: Statistics | None = None,
        sequential: bool = False,
        texts: Mapping[str, torch.Tensor] | None = None,
        bos: BosProtocol = "never",
        tokenizer: PreTrainedTokenizerBase | None = None,
        data_dir: str | Path | None = None,
        openings: torch.Tensor | None = None,
    ) -> None:
        if (calibrated or sequential) and calibration is None:
            asked = "calibrated=True" if calibrated else "calibration in sequence"
            raise ValueError(f"{asked} needs a calibration: RidgeCalibration(prunable, stats)")
        self.prunable = prunable
        self.windows = windows
        self.bos: BosProtocol = bos
        self.texts = {**(texts or {}), "search": windows}
        self.calibration = calibration
        self.calibrated = calibrated
        self.statistics = None if statistics is None else replace(statistics, grams=None)
        self._fast = calibration.approximate() if calibration is not None and calibrated else None
        self.batch_size = batch_size
        self.tokenizer, self.data_dir = tokenizer, data_dir
        self.rewarded: RewardMix | None = None
        self.openings = openings
        self.in_sequence: FinalCalibration | None = None
        if calibration is not None and sequential:
            self.in_sequence = FinalCalibration(calibration, self.texts["calibration"], batch_size, openings)
        self.further = torch.cat([self.texts.get(purpose, windows[:0]) for purpose in ("pool", "watch")])
        self._measured: dict[tuple[int, Windows, bytes], float] = {}
        self._dense: dict[tuple[int, Windows], float] = {}
        self._divergences: dict[tuple[int, Windows, bytes], float] = {}
        # Of the ranking that they were made under, and of further windows of the last that were asked for.
        self._dense_states: tuple[tuple[int, Windows], list[torch.Tensor]] = ((-1, 0), [])
        if not math.isfinite(self.dense(len(windows))):
            raise ValueError("the dense model's perplexity on the search text is not finite: check weights and dtype")

    @property
    def units(self) -> tuple[PruneUnit, ...]:
        """The units of the model."""
        return self.prunable.units

    @property
    def devices(self) -> int:
        """Devices that the model is spread over."""
        return devices_held(self.prunable.model)

    @property
    def max_samples(self) -> int:
        """Windows of search text."""
        return len(self.windows)

    @property
    def max_final_samples(self) -> int:
        """Windows for finalists."""
        return len(self.texts.get("finalists", ()))

    @property
    def pool(self) -> tuple[int, ...]:
        """Indices of the windows to draw from."""
        return tuple(range(len(self.texts.get("pool", ()))))

    @property
    def watch(self) -> tuple[int, ...]:
        """Indices of the windows that a search is watched on."""
        return tuple(range(len(self.texts.get("pool", ())), len(self.further)))

    @property
    def chosen_on(self) -> torch.Tensor:
        """All windows that policies were chosen by: int64 [n, seq_len], those of the search, then the finalists'."""
        return torch.cat([self.windows, self.texts.get("finalists", self.windows[:0])])

    def measure(self, kept: IntArray, n_samples: Windows) -> float:
        """Prunes, measures, and leaves the model dense again."""
        counts = self.prunable.check_kept(kept)
        key = (self.prunable.rankings, self._asked(n_samples), counts.tobytes())
        if key not in self._measured:
            self._prepare(self._place(n_samples))
            with self.prunable.pruned(counts, self._fast) as model:
                self._measured[key] = self._cost(model, self._place(n_samples))
        return self._measured[key]

    def compare(self, kept: IntArray, n_samples: Windows) -> tuple[float, float]:
        """Perplexity and mean KL(dense ‖ pruned) on these windows, from one forward pass."""
        counts = self.prunable.check_kept(kept)
        self.prunable.require_dense("measure")
        rankings = self.prunable.rankings
        key = (rankings, n_samples, counts.tobytes())
        if key not in self._divergences:
            windows = self._chosen(n_samples)
            # The first of all are remembered for good, or as long as nothing else is asked for.
            seen = rankings, self.max_samples if isinstance(n_samples, int) else n_samples
            if self._dense_states[0] != seen:
                states = final_hidden_states(self.prunable.model, self._chosen(seen[1]), self.batch_size)
                self._dense_states = seen, states
            dense = self._dense_states[1][: len(windows)]
            with self.prunable.pruned(counts, self._fast) as model:
                self._measured[key], self._divergences[key] = compare_with_dense(model, windows, dense, self.batch_size)
        return self._measured[key], self._divergences[key]

    def final_calibration(self, kept: IntArray) -> WeightCalibration | None:
        """What the model that the user will get is re-fitted with: in sequence, by Eqs. 6-7 alone, or not at all.

        In sequence it is made for this allocation, which takes a minute where a measurement takes a second; the last
        one is remembered. Where memory does not do for that, or the pruned model collapses, which is logged, it is
        Eqs. 6-7 alone, for this allocation and from then on; the next one is tried again.
        """
        return self.calibration if self.in_sequence is None else self.in_sequence.of(kept)

    def sharing_dense_pass(self) -> AbstractContextManager[None]:
        """Inside, calibrations in sequence share the dense model's pass, if there is room for its hidden states.

        It is 40 % of one calibration: several of them cost little more than half as much each. Afterwards the memory
        is free again.
        """
        return nullcontext() if self.in_sequence is None else self.in_sequence.sharing_dense_pass()

    def give_up_dense_pass(self) -> bool:
        """Frees what calibrations share by now, for who needs the memory; the next of them makes it anew.

        Returns:
            Whether there was anything.
        """
        return self.in_sequence is not None and self.in_sequence.give_up_dense_pass()

    @property
    def calibration_asked(self) -> CalibrationKind:
        """How :meth:`final_calibration` calibrates where nothing comes in between."""
        if self.calibration is None:
            return "none"
        return "ridge" if self.in_sequence is None else "sequential"

    def final_losses(self, kept: IntArray, n_samples: int) -> FloatArray:
        """Losses in the first windows for finalists; calibrated, if :meth:`measure` is, but in float32."""
        if not 1 <= n_samples <= self.max_final_samples:
            raise ValueError(f"n_samples must be between 1 and {self.max_final_samples}, got {n_samples}")
        place: Place = ("finalists", tuple(range(n_samples)))
        self._prepare(place)
        with self.prunable.pruned(kept, self.calibration if self.calibrated else None) as model:
            return self._losses(model, place)

    def dense(self, n_samples: Windows) -> float:
        """Measured once per number of windows, and of further windows once for each of them, however they are drawn."""
        self.prunable.require_dense("measure as dense")
        key = (self.prunable.rankings, self._asked(n_samples))  # ranking moves bfloat16 results in the last digits
        if key not in self._dense:
            if isinstance(n_samples, int) or len(n_samples) == 1 or not self._adds_up:
                self._prepare(self._place(n_samples))
                self._dense[key] = self._cost(self.prunable.model, self._place(n_samples))
            else:  # one by one, so that the figure does not depend on which of them were asked for before
                losses = [math.log(self.dense((i,))) for i in n_samples]
                self._dense[key] = math.exp(sum(losses) / len(losses))
        return self._dense[key]

    def remember(
        self, kept: IntArray, n_samples: Windows, ppl: float, kl: float | None = None, dense_ppl: float | None = None
    ) -> None:
        """Takes answers that were measured before, of this model under this ranking, for its own."""
        key = (self.prunable.rankings, self._asked(n_samples), self.prunable.check_kept(kept).tobytes())
        self._measured[key] = ppl
        if kl is not None:
            self._divergences[key] = kl
        if dense_ppl is not None:
            self._dense[self.prunable.rankings, self._asked(n_samples)] = dense_ppl

    def remembers(self, kept: IntArray, n_samples: Windows, kl: bool = False) -> bool:
        """Whether :meth:`measure`, or with ``kl`` :meth:`compare`, would answer at once."""
        key = (self.prunable.rankings, self._asked(n_samples), self.prunable.check_kept(kept).tobytes())
        return key in (self._divergences if kl else self._measured)

    def forget(self) -> None:
        """Drops what was measured of pruned models, so that the same question costs a measurement again."""
        self._measured.clear()
        self._divergences.clear()

    def rewarding(self, reward: str | Callable[..., Any], stands_in: bool = False) -> LMEvaluator:
        """An evaluator of the same model that measures something else in the place of perplexity.

        Args:
            reward: see :func:`~ffprune_env.evaluators.objectives.reward.parse_reward`, or a function of model and
                tokenizer.
            stands_in: let also ``kl`` take the place of perplexity, beside which else :meth:`compare` measures it.

        Raises:
            ValueError: no reward, bad data or too little of it, or an evaluator that was built without a tokenizer.
            OSError: a file is missing, or the hub is needed and out of reach.
        """
        from ffprune_env.evaluators.rewarded import rewarding

        return rewarding(self, reward, stands_in)

    @property
    def text_evaluator(self) -> LMEvaluator:
        """The same model, measured by the perplexity of text whatever is rewarded."""
        return self

    @property
    def _adds_up(self) -> bool:
        """Whether what is said of several windows is the mean of what is said of each."""
        return True

    def _cost(self, model: PreTrainedModel, place: Place) -> float:
        """Perplexity, or what takes its place; the model may be dense or pruned."""
        return _perplexity(model, self._windows(place), self.batch_size)

    def _losses(self, model: PreTrainedModel, place: Place) -> FloatArray:
        """What the logarithm of that is the mean of."""
        losses = window_losses(model, self._windows(place), self.batch_size).double().numpy()
        return np.where(np.isfinite(losses), losses, np.inf)

    def _windows(self, place: Place) -> torch.Tensor:
        purpose, indices = place
        windows = {"search": self.windows, "further": self.further}.get(purpose)
        windows = self.texts[purpose] if windows is None else windows
        return windows[list(indices)]

    def _prepare(self, place: Place) -> None:
        """Is called before a cost is asked for, while the model is dense."""

    def _asked(self, n_samples: Windows) -> Windows:
        """What of the windows an answer depends on."""
        return n_samples

    def _place(self, n_samples: Windows) -> Place:
        self._chosen(n_samples)  # which says what there is
        return ("search", tuple(range(n_samples))) if isinstance(n_samples, int) else ("further", n_samples)

    def _chosen(self, n_samples: Windows) -> torch.Tensor:
        if isinstance(n_samples, int):
            if not 1 <= n_samples <= len(self.windows):
                raise ValueError(f"n_samples must be between 1 and {len(self.windows)}, got {n_samples}")
            return self.windows[:n_samples]
        if not n_samples or not 0 <= min(n_samples) <= max(n_samples) < len(self.further):
            raise ValueError(f"windows must be indices below {len(self.further)}, at least one, got {n_samples}")
        return self.further[list(n_samples)]
