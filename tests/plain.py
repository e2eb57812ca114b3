"""Settings of an evaluator that does as little as there is to do: cut, not calibrated, nothing in groups."""

from __future__ import annotations

from typing import Any

from ffprune_env.evaluators.settings import EvaluatorSettings

PLAIN: dict[str, Any] = {
    "criterion": "wanda", "channels_per_group": 1, "heads": "single", "calibration": "none", "reward_model": "cut",
    "batch_size": 1, "seq_len": 512, "search_windows": 4, "final_windows": 0, "curve_windows": 0,
    "calibration_windows": 32,
}  # fmt: skip


def plain(**changes: Any) -> EvaluatorSettings:
    return EvaluatorSettings(**plainly(**changes))


def plainly(**changes: Any) -> dict[str, Any]:
    """The same, as arguments of load_evaluator."""
    return PLAIN | changes
