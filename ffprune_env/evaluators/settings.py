"""How a model is ranked, calibrated and measured: settings of everything that measures one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ffprune_env.evaluators.objectives.build import require_reward
from ffprune_env.evaluators.objectives.settings import RewardSettings
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.pruning.calibration import Storage, check_storage
from ffprune_env.pruning.criteria import CRITERIA
from ffprune_env.pruning.head_groups import HeadGroups, check_head_groups
from ffprune_env.pruning.ridge import DEFAULT_RIDGE, RidgeScale, check_ridge
from ffprune_env.texts.openings import EVERY
from ffprune_env.texts.window_settings import WindowSettings
from ffprune_env.texts.windows import require_text

RewardModel = Literal["cut", "calibrated"]
Calibrating = Literal["none", "ridge", "sequential"]


@dataclass(frozen=True)
class RankingSettings:
    """How heads and channels are put in order; the fields are flags, with their help."""

    criterion: str = "surgeon"
    """how heads and channels are ranked: surgeon (what ridge calibration restores worst), wanda (the paper's), taylor,
    wanda+taylor, or FLAP's wifv"""
    channels_per_group: int = 32
    """FFN channels that are removed at once, those next in rank: some hardware multiplies matrices faster where columns
    come in multiples of 8, 16 or 32, or of 64 and more. Fewer where that would leave an FFN less than 32 groups, or
    groups as large as one of heads; of more than 32 only where it would leave less than 4 groups"""
    heads: HeadGroups = "balanced"
    """what goes at once where query heads share keys and values: balanced (a query head of every key/value head, so
    that what is left is shared evenly and servers run it as it is), single (a query head) or groups (a key/value head
    with its query heads and its cache). Elsewhere all three are the same"""


@dataclass(frozen=True)
class CalibrationSettings:
    """How the surviving weights are re-fitted, and what is rewarded; the fields are flags, with their help."""

    calibration: Calibrating = "sequential"
    """how the model that is reported and written is re-fitted: ridge (Eqs. 6-7), sequential (the same, then once more
    in sequence, each unit for what flows into it), or none"""
    reward_model: RewardModel = "calibrated"
    """which model the search rewards: calibrated (by Eqs. 6-7) or cut (weights as they were)"""
    ridge: float = DEFAULT_RIDGE
    """λ of the calibration (Eq. 6), how strongly it is held back, in the unit of --ridge-scale"""
    ridge_scale: RidgeScale = "relative"
    """what λ is: relative (a fraction of the mean diagonal of G, however many tokens) or absolute (as the paper has it:
    added itself to the diagonal of G = XᵀX, summed over all tokens)"""
    openings: int = EVERY
    """one token out of so many of the calibration text is also calibrated on as the first of a window, where models
    keep an attention sink; 0: none. Windows that begin with the BOS token need none"""
    factor_storage: Storage = "device"
    """where the calibration keeps its factors: device, or cpu where they do not fit beside the model"""


@dataclass(frozen=True)
class BatchSettings:
    """How much goes through the model at once; the field is a flag, with its help."""

    batch_size: int | None = None
    """windows of text, or token sequences of zero-shot questions, per forward pass; None: by device and window length.
    Halved where memory runs out"""


@dataclass(frozen=True)
class EvaluatorSettings(WindowSettings, RankingSettings, CalibrationSettings, BatchSettings, RewardSettings):
    """All settings that the figures of an evaluator depend on, beside model and text."""

    def require_allowed(self) -> None:
        """Raises ValueError, in the words of the command line, for what no model is needed to refuse.

        Raises:
            OSError: a text to calibrate on is not there, or what is rewarded.
        """
        for flag, value, least in (
            ("--seq-len", self.seq_len, 2),
            ("--search-windows", self.search_windows, 1),
            ("--final-windows", self.final_windows, 0),
            ("--curve-windows", self.curve_windows, 0),
            ("--calibration-windows", self.calibration_windows, 1),
            ("--pool-windows", self.pool_windows, 1),
            ("--openings", self.openings, 0),
            ("--patience", self.patience, 1),
            ("--watch-windows", self.watch_windows, 1),
            ("--eval-every", self.eval_every, 0),
            ("--channels-per-group", self.channels_per_group, 1),
            ("--batch-size", self.batch_size, 1),
        ):
            require_in_range(flag, value, least)
        if self.calibration_text is not None:
            require_text(self.calibration_text)
        require_reward(self.rewarded, self.data_dir)
        check_ridge(self.ridge, self.ridge_scale)
        check_storage(self.factor_storage)
        check_head_groups(self.heads)
        if self.criterion not in CRITERIA:
            raise ValueError(f"unknown criterion {self.criterion!r}; allowed are {', '.join(CRITERIA)}")
        if self.reward_model == "calibrated" and self.calibration == "none":
            raise ValueError("--calibration none leaves no calibrated model to reward: add --reward-model cut")
