"""Openings: tokens of calibration text, each as the first and only one of a window of its own."""

from __future__ import annotations

import torch

from ffprune_env.texts.bos import BosProtocol

#: One token out of so many: 4 % more text, which shows how thousands of windows begin.
EVERY = 24


def openings_of(windows: torch.Tensor, every: int = EVERY, bos: BosProtocol = "never") -> torch.Tensor | None:
    """Every so many-th token of calibration text, for calibrations that see how windows begin.

    Heads attend to the first token of a window where they have nothing else to attend to (an attention sink), and a
    model marks that token with activations a hundred times larger than all others. A window of text shows one of
    them. A fit to a hundred windows knows the tokens that happened to stand there; behind others the mark is gone, and
    the whole window is lost.

    Args:
        windows: int64 [n, seq_len], calibration text.
        every: one token out of so many; 24 is usual, 0: none.
        bos: whether windows begin with the BOS token, so that no other token is ever the first.

    Returns:
        int64 [m, 1], or None if there are none.
    """
    if not every or bos == "always":
        return None
    return windows.flatten()[::every, None]
