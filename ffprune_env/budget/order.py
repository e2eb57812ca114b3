"""The order in which units are served: by descending score, and by a draw among equal ones."""

from __future__ import annotations

import zlib

import numpy as np

from ffprune_env.budget.arrays import FloatArray, IntArray


def descending(scores: FloatArray) -> IntArray:
    """Unit indices by descending score; equal scores are in an order that is drawn.

    By index, early layers would win every tie. The draw is seeded by the scores themselves: the same scores have the
    same order, always, and over many scores no unit is served first more often than another.

    Args:
        scores: float64 [N], finite.
    """
    if len(np.unique(scores)) == len(scores):
        return np.argsort(-scores)
    seed = zlib.crc32((scores + 0.0).tobytes())  # -0.0 equals 0.0, and so must its draw
    drawn = np.random.default_rng(seed).permutation(len(scores))
    order: IntArray = np.lexsort((drawn, -scores))
    return order
