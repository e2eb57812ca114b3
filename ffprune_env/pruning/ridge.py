"""λ of Eq. 6: what is added to the diagonal of G, in parts of its mean or as it stands."""

from __future__ import annotations

import math
from typing import Literal, get_args

#: ``relative``: λ is a fraction of the mean diagonal of G, and so the same whatever the scale of the activations and
#: the number of tokens. ``absolute``: λ is added as it stands to the diagonal of G = XᵀX, summed over all tokens of
#: calibration text, as the paper prints Eq. 6; the more tokens there are, the less it is.
RidgeScale = Literal["relative", "absolute"]

#: λ of the paper, which is taken relative here unless somebody asks otherwise (docs/design.md, 4.5).
DEFAULT_RIDGE = 0.01


def check_ridge(ridge: float, scale: str = "relative") -> None:
    """Raises ValueError if a λ is out of range, or its scale is none."""
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be a finite number, at least 0 (0.01 is usual), got {ridge}")
    if scale not in get_args(RidgeScale):
        raise ValueError(f"unknown scale {scale!r} of the ridge; allowed are {', '.join(get_args(RidgeScale))}")


def ridge_unit(scale: RidgeScale, mean_diagonal: float) -> float:
    """What a λ of 1 adds to the diagonal of G.

    Args:
        scale: of λ.
        mean_diagonal: mean of the diagonal of G.
    """
    return mean_diagonal if scale == "relative" else 1.0
