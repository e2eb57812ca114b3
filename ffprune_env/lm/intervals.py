"""How far the perplexity of a few windows may be from that of the text they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

#: No interval is given below so many windows: of two it covers 95 % too, but reaches nine deviations to each side.
LEAST_WINDOWS = 4
#: Of fewer windows it cannot be told whether neighbours are alike, and they are taken as independent.
LEAST_NEIGHBOURS = 8
_COVERED = 0.95
# Windows that are all alike would be none.
_MOST_ALIKE = 0.9


def perplexity_interval(losses: npt.ArrayLike) -> tuple[float, float] | None:
    """95 % interval of a perplexity: Student's t for the mean loss over windows, then exp.

    It covers what it says if the losses of windows are nearly normal, however few windows there are, and a little less
    where they are skewed. Neighbours in one text may be alike, and then say less than as many independent windows: see
    :func:`effective_windows`. Where the losses of neighbours correlate by 0.5 it so covers 88 % of 8 windows and 93 %
    of 32, and without that 77 and 74 %; of independent ones 96 %. Fewer than :data:`LEAST_NEIGHBOURS` windows are taken
    as independent.

    Args:
        losses: [n], mean loss of every window, in the order of the text (see
            :func:`ffprune_env.lm.loss.window_losses`).

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
    effective = effective_windows(values)
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(effective)
    # SciPy takes no distribution without a width.
    bounds = stats.t.interval(_COVERED, effective - 1, mean, error) if error > 0 else (mean, mean)
    with np.errstate(over="ignore"):  # too large for exp is inf, as in perplexity
        low, high = np.exp(bounds)
    return float(low), float(high)


def upper_bound(differences: npt.ArrayLike) -> float:
    """What the mean of a text is below with 95 % confidence: Student's t, one-sided, for windows of it.

    Of differences between two models on the same windows the bound is close, since what makes a window hard is in both.
    Neighbours that are alike count as in :func:`perplexity_interval`.

    Args:
        differences: [n], one number per window, in the order of the text.

    Returns:
        At least the mean; inf where one number is not finite.

    Raises:
        ValueError: fewer than :data:`LEAST_WINDOWS` windows, of which no bound is given.

    Source:
        Student, The probable error of a mean, Biometrika 6 (1908).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < LEAST_WINDOWS:
        raise ValueError(f"a bound needs one number for each of {LEAST_WINDOWS} windows or more, got {values.shape}")
    if not np.isfinite(values).all():
        return float("inf")
    effective = effective_windows(values)
    error = values.std(ddof=1) / np.sqrt(effective)
    return float(values.mean() + stats.t.ppf(_COVERED, effective - 1) * error)


def effective_windows(losses: npt.NDArray[np.float64]) -> float:
    """How many independent windows would say as much about the mean loss as these do: n (1 - r) / (1 + r).

    r is the correlation of neighbours, with what an estimate from n windows lacks on the average, (1 + 3 r) / n, added;
    neighbours that are unlike count as independent.

    Args:
        losses: float64 [n], finite, in the order of the text.

    Returns:
        Between :data:`LEAST_WINDOWS` and n: an interval of fewer would reach so far that it says nothing. Of fewer
        windows than :data:`LEAST_NEIGHBOURS` it is n.

    Source:
        Bayley and Hammersley, The effective number of independent observations in an autocorrelated time series,
        Supplement to the JRSS 8 (1946); Marriott and Pope, Bias in the estimation of autocorrelations, Biometrika 41
        (1954).
    """
    n = len(losses)
    deviations = losses - losses.mean()
    total = float(deviations @ deviations)
    if n < LEAST_NEIGHBOURS or total == 0:
        return float(n)
    found = float(deviations[1:] @ deviations[:-1]) / total
    alike = min(max(found + (1 + 3 * found) / n, 0.0), _MOST_ALIKE)
    return max(n * (1 - alike) / (1 + alike), float(LEAST_WINDOWS))


def neighbours_note(n: int | None = None) -> str:
    """What an interval makes of neighbouring windows, in words for reports.

    Args:
        n: windows, where that is known.
    """
    if n is None:
        return f"wider where neighbouring windows are alike; fewer than {LEAST_NEIGHBOURS} are taken as independent"
    return "windows taken as independent" if n < LEAST_NEIGHBOURS else "wider where neighbouring windows are alike"
