"""The highest σ that still meets a limit, between one that does and one that does not, by few measurements.

Nothing is taken to be monotone: both ends of what is returned were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable

#: By how much a limit is missed at a sparsity; 0 or less where it is met.
Excess = Callable[[float], float]
#: Decimals of every sparsity that is tried but the ends, so that what is printed is what was measured.
DECIMALS = 4


def highest_meeting(
    excess: Excess,
    low: float,
    high: float,
    guess: float,
    step: float,
    width: float,
    same: Callable[[float, float], bool] = lambda one, other: one == other,
) -> tuple[float | None, float | None]:
    """Steps away from a guess, farther every time, until one σ meets the limit and one misses it; then narrows that.

    Between the two a straight line through the excesses says where to look next (regula falsi), and after two looks on
    the same side the middle does, so that it ends wherever the excess is not finite or not smooth.

    Args:
        excess: measures; asked once for every σ.
        low: the lowest σ allowed.
        high: the highest.
        guess: where to begin.
        step: how far the first step goes; every other twice as far as the one before.
        width: how far apart the two may be in the end.
        same: whether two sparsities are answered by the same model: between such there is nothing to look for.

    Returns:
        The highest σ that was seen to meet the limit, and a higher one that misses it: None in the place of the first
        where ``low`` misses it, and of the second where ``high`` meets it.
    """
    met, missed = None, None
    values: dict[float, float] = {}
    at = min(max(_rounded(guess), low), high)
    while met is None or missed is None:
        values[at] = excess(at)
        if values[at] <= 0:
            met = at
            if missed is None and at >= high:
                return met, None
            following = min(high, _rounded(at + step))
        else:
            missed = at
            if met is None and at <= low:
                return None, missed
            following = max(low, _rounded(at - step))
        at, step = following, 2 * step
    sides: list[bool] = []
    while missed - met > width + 1e-9:
        at = _rounded(_between(met, missed, values, width, halve=sides[-2:] in ([True, True], [False, False])))
        if not met < at < missed or same(at, met) or same(at, missed):
            at = _rounded((met + missed) / 2)
            if not met < at < missed or same(at, met) or same(at, missed):
                break
        values[at] = excess(at)
        sides.append(values[at] <= 0)
        if values[at] <= 0:
            met = at
        else:
            missed = at
    return met, missed


def _between(met: float, missed: float, values: dict[float, float], width: float, halve: bool) -> float:
    """Where to look next: where a straight line through both excesses is 0, or in the middle."""
    below, above = values[met], values[missed]
    middle = (met + missed) / 2
    if halve or not math.isfinite(above - below) or above - below <= 0:
        return middle
    crossing = met + (missed - met) * -below / (above - below)
    margin = min(width / 2, (missed - met) / 2)
    return min(max(crossing, met + margin), missed - margin)


def _rounded(sparsity: float) -> float:
    return round(sparsity, DECIMALS)
