"""How many windows of which text serve which purpose; who gets which of them is in ``window_plan.py``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ffprune_env.texts.bos import Bos


@dataclass(frozen=True)
class WindowLength:
    """How long a window is, and how it begins; the fields are flags, with their help."""

    seq_len: int = 1024
    """tokens per window of --text; a model whose context is shorter uses its own maximum"""
    bos: Bos = field(default="auto", kw_only=True)
    """whether every window begins with the tokenizer's BOS token, with one token of text less behind it: always, never,
    or auto (where the model needs it: Gemma)"""


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
    calibration_text: str | None = None
    """text whose calibration part the criterion and the calibration see (with --calibration none the criterion alone);
    None takes that of --text. It must not hold what is searched or tested on"""

    fresh_windows: bool = True
    """draw the windows of every rollout anew from --pool-windows, so that a search cannot fit the few that it measures
    on; what ranks candidates is how much better they are than the start on the same windows. Otherwise all are measured
    on the same windows"""
    pool_windows: int = 64
    """with --fresh-windows, further windows of search text to draw from, or all there are if those are fewer"""
    patience: int | None = None
    """stop once so many rollouts have gone by without a better mean of the policy on windows that it was not rewarded
    for, and take the best mean; None searches to the end"""
    watch_windows: int = 4
    """with --patience or --eval-every, further windows of search text that the mean is measured on"""
    eval_every: int | None = 0
    """rollouts between two looks at the policy's mean at the final sparsity, always on the same --watch-windows, for
    TensorBoard (eval/); None takes so many that they cost a twentieth of what the candidates do, 0 never looks"""

    @property
    def windows_wanted(self) -> dict[str, int]:
        """Windows of the search part of the text by purpose: all that are asked for."""
        return {
            "search": self.search_windows,
            "finalists": self.final_windows,
            "curves": self.curve_windows,
            "pool": max(self.pool_windows, self.search_windows) if self.fresh_windows else 0,
            "watch": self.watch_windows if self.patience is not None or self.eval_every != 0 else 0,
        }

    @property
    def watch_gives_way(self) -> bool:
        """Whether a search that there are no windows to watch on is as good."""
        return self.patience is None
