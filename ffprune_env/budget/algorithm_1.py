"""Algorithm 1 of the paper, step by step: scores to rates that meet the parameter budget (docs/design.md, 4.1).

    scores A ─▶ A'' ─▶ order ─▶ rates ─▶ rates in hundredths      :func:`squashed`, ``descending``, :func:`filled`,
                                                                   :func:`discretized`
Whole groups, its step for real models, are made in ``allocation.py``.
"""

from __future__ import annotations

import numpy as np

from ffprune_env.budget.arrays import FloatArray, IntArray

_STEP = 0.01  # of a rate, as printed


def squashed(scores: FloatArray, a_min: float, a_max: float) -> FloatArray:
    """A'' (steps 1 and 2): A' = clip(tanh(A + 1) / 2, 0, 1), spread over the bounds.

    All scores below -1 become the same A''.

    Args:
        scores: A, [N].
        a_min: lowest rate.
        a_max: highest rate.
    """
    a: FloatArray = np.clip(np.tanh(scores + 1) / 2, 0, 1)
    return a * (a_max - a_min) + a_min


def filled(order: IntArray, retention: float, weights: FloatArray, a_min: float, a_max: float) -> FloatArray:
    """Rates (steps 3 and 4): one unit after another takes as much of the budget as a_max allows.

    Args:
        order: [N] unit indices, who is served first to last.
        retention: P = 1 - σ, in [a_min, a_max].
        weights: w, [N] positive.
        a_min: lowest rate.
        a_max: highest rate.

    Returns:
        [N] rates within the bounds with Σ rate_i w_i = P Σ w; one at the most lies between the bounds.
    """
    rates = np.full(len(weights), a_min)
    left = retention * weights.sum() - rates @ weights  # B
    for i in order:
        rates[i] += min(max(left, 0.0) / weights[i], a_max - rates[i])
        left -= (rates[i] - a_min) * weights[i]
    return rates


def discretized(
    rates: FloatArray, order: IntArray, retention: float, weights: FloatArray, a_min: float, a_max: float
) -> FloatArray:
    """Rates in hundredths (step 5, ``DiscretizeAndCorrect``): rounded, and the residue goes to the highest A''.

    What the highest A'' cannot take within the bounds goes to the next one, and so on. Who takes a residue is not at a
    hundredth any more.

    Args:
        rates: [N], as :func:`filled` gives them.
        order: as for :func:`filled`, like the arguments after it.
        retention: P.
        weights: w.
        a_min: lowest rate.
        a_max: highest rate.

    Returns:
        [N] rates within the bounds with Σ rate_i w_i = P Σ w.
    """
    rates = np.clip(np.rint(rates / _STEP) * _STEP, a_min, a_max)
    left = retention * weights.sum() - rates @ weights
    for i in order:
        change = min(max(left / weights[i], a_min - rates[i]), a_max - rates[i])
        rates[i] += change
        left -= change * weights[i]
    return rates
