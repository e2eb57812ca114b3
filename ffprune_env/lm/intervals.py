"""How far the perplexity of a few windows may be from that of the text they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

#: No interval is given below so many windows: of two it covers 95 % too, but reaches nine deviations to each side.
LEAST_WINDOWS = 4
_COVERED = 0.95


def perplexity_interval(losses: npt.ArrayLike) -> tuple[float, float] | None:
    """95 % interval of a perplexity: Student's t for the mean loss over windows, then exp.

    It covers what it says if the losses of windows are nearly normal, however few windows there are, and a little less
    where they are skewed. Windows are taken for independent: how they depend on each other within one text is not seen.

    Args:
        losses: [n], mean loss of every window (see :func:`ffprune_env.lm.loss.window_losses`).

    Returns:
        The lower and the upper bound, the latter inf where exp is too large; None of fewer than
        :data:`LEAST_WINDOWS` windows, or of a loss that is not finite.

    Raises:
        ValueError: the losses are no vector.

    Source:
        Student, The probable error of a mean, Biometrika 6 (1908).
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"an interval needs one loss per window, a vector, got shape {values.shape}")
    n = len(values)
    if n < LEAST_WINDOWS or not np.isfinite(values).all():
        return None
    half = stdtrit(n - 1, (1 + _COVERED) / 2) * values.std(ddof=1) / np.sqrt(n)
    with np.errstate(over="ignore"):  # too large for exp is inf, as in perplexity
        low, high = np.exp(values.mean() + np.array([-half, half]))
    return float(low), float(high)
