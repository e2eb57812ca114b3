"""`waterfill`: scores to rates by their magnitudes, where Algorithm 1 goes by their order (docs/design.md, 4.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ffprune_env.budget.arrays import FloatArray

_BISECTIONS = 64  # halvings of an interval of length 2: past float64 resolution


def waterfill_wanted(scores: FloatArray, a_min: float, a_max: float) -> FloatArray:
    """A'' = (tanh(A) + 1) / 2 · (a_max - a_min) + a_min: the rates that scores ask for, of which differences count.

    Args:
        scores: A, [N] finite.
        a_min: lowest rate.
        a_max: highest rate.
    """
    wanted: FloatArray = (np.tanh(scores) + 1) / 2 * (a_max - a_min) + a_min
    return wanted


def waterfill_rates(
    scores: FloatArray, retention: float, weights: FloatArray, a_min: float, a_max: float
) -> FloatArray:
    """Rates clip(A'' + c, a_min, a_max), with c such that Σ rate_i w_i = P Σ w; see :func:`waterfill_wanted`.

    Args:
        scores: A, [N] finite.
        retention: P = 1 - σ, in [a_min, a_max].
        weights: w, [N] positive.
        a_min: lowest rate.
        a_max: highest rate.

    Returns:
        [N] rates within the bounds.
    """
    wanted = waterfill_wanted(scores, a_min, a_max)
    below, above = -1.0, 1.0  # at c = -1 every rate is a_min, at c = 1 every rate is a_max
    for _ in range(_BISECTIONS):
        c = (below + above) / 2
        if np.clip(wanted + c, a_min, a_max) @ weights > retention * weights.sum():
            above = c
        else:
            below = c
    rates: FloatArray = np.clip(wanted + below, a_min, a_max)
    return rates


def waterfill_scores(rates: npt.ArrayLike, a_min: float, a_max: float) -> FloatArray:
    """Scores that ``waterfill`` maps to given rates: where a policy starts if it is to start from an allocation.

    Any common shift of A'' gives the same rates; the one taken centres them between the bounds, where tanh is steepest
    and a change of a score shows most.

    Args:
        rates: [N] rates within the bounds, whose range is less than a_max - a_min.
        a_min: lowest rate.
        a_max: highest rate.
    """
    wanted = np.asarray(rates, dtype=np.float64)
    centred = wanted - (wanted.max() + wanted.min()) / 2 + (a_min + a_max) / 2
    scores: FloatArray = np.arctanh(np.clip(2 * (centred - a_min) / (a_max - a_min) - 1, -0.999, 0.999))
    return scores
