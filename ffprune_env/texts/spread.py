"""Which of some windows stand for all of them: text is sorted by subject, so those at equal distances."""

from __future__ import annotations

import torch


def middles(length: int, n: int) -> list[int]:
    """The indices in the middles of n equal stretches of 0, ..., length - 1.

    Args:
        length: how many indices there are.
        n: how many are wanted, 0 to ``length``.

    Returns:
        n different indices, ascending.
    """
    return [(2 * i + 1) * length // (2 * n) for i in range(n)]


def spread_windows(windows: torch.Tensor, tokens: int) -> torch.Tensor:
    """As many windows as hold some number of tokens, at least one, at equal distances, the ends among them.

    Args:
        windows: int64 [n, seq_len].
        tokens: wanted; fewer where there are no more.

    Returns:
        int64 [m ≤ n, seq_len].
    """
    n = min(len(windows), max(1, tokens // windows.shape[1]))
    return windows[torch.linspace(0, len(windows) - 1, n).round().long()]
