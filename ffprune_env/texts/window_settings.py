"""How many windows of text serve which purpose; who gets which of them is in ``window_plan.py``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WindowLength:
    """How long a window is; the field is a flag, with its help."""

    seq_len: int = 1024
    """tokens per window of --text; a model whose context is shorter uses its own maximum"""


@dataclass(frozen=True)
class WindowSettings(WindowLength):
    """Windows by purpose; the fields are flags, with their help."""

    search_windows: int = 2
    """windows of search text per evaluation, at the end of the schedule (N_max): more is slower and less noisy"""
    final_windows: int = 8
    """further windows of search text that the last candidates are compared on; neither start nor search sees them"""
    curve_windows: int = 16
    """further windows of search text for damage curves, if somebody looks at any; fewer where the text is short"""
    calibration_windows: int = 96
    """windows of calibration text that the criterion and the calibration see, or all there are if those are fewer"""
