"""What pruning costs, e(x) = ln PPL(x) - ln PPL(dense) in nats per token, and how much of it is gone."""

from __future__ import annotations

import math


def excess(ppl: float, dense: float) -> float:
    """E of a perplexity; infinite where that is."""
    return math.log(ppl) - math.log(dense) if math.isfinite(ppl) else math.inf


def share_removed(ppl: float, base: float, dense: float) -> float:
    """Share of e(base) that is gone.

    Returns:
        1 - e(ppl) / e(base): 0 for the base, 1 for the dense model, below 0 for what is worse than the base. NaN where
        e(base) is infinite, or where the base is no worse than the dense model.
    """
    of_base = excess(base, dense)
    return 1 - excess(ppl, dense) / of_base if 0 < of_base < math.inf else math.nan


def change(ppl: float, base: float) -> float:
    """PPL / base − 1; NaN where the base is infinite and nothing can be compared with it."""
    return ppl / base - 1 if math.isfinite(base) else math.nan


def change_text(ppl: float, base: float) -> str:
    """The same for people, in percent; nothing unless both are finite: a model that collapsed is at no distance."""
    return f"{change(ppl, base):+.1%}" if math.isfinite(ppl) and math.isfinite(base) else ""


def share_text(share: float) -> str:
    """A share for people, in percent; a dash where there is none."""
    return "–" if math.isnan(share) else f"{share:.1%}"
