"""Whether a lead of `ffn-only` in the last look is more than chance: it has nothing but these few windows for it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.search.added import MEAN, SAFETY_NET, START

logger = logging.getLogger(__name__)

# Nats per token, 3 % of perplexity: a larger lead counts, whatever few windows it comes from. One window alone always
# leads by as much as its standard error.
_NEVER_CHANCE = 0.03


def settled(
    order: Sequence[str],
    losses: Mapping[str, FloatArray],
    known: Collection[str],
    simple: Collection[str] = (SAFETY_NET,),
) -> list[str]:
    """Names with the answer first: the best, but `ffn-only` only where its lead is more than chance.

    Damage curves speak for a start, and what a search was rewarded for speaks for its mean, both on other text than
    this. Nothing else speaks for `ffn-only`, and of a few windows one that is hard decides. Its lead is chance where it
    is no more than the standard error of the difference, window by window, comes from no more than half of the windows,
    and is small; then the next best is the answer. Nothing speaks for equal scores, nor for a sample that was the best
    of many: against these the lead counts as it is.

    Args:
        order: of the candidates, the best first.
        losses: float64 [n] by name, of the same windows. Of one number no error can be told, and the lead counts.
        known: candidates that other text speaks for.
        simple: names of `ffn-only`: a search may have started from it.
    """
    if order[0] not in simple or len(order) < 2 or order[1] not in known:
        return list(order)
    leads = losses[order[1]] - losses[order[0]]
    if len(leads) < 2 or not np.isfinite(leads).all():  # the latter of the other's model, which is broken
        return list(order)
    lead, error = float(leads.mean()), float(leads.std(ddof=1)) / len(leads) ** 0.5
    if lead > error or lead > _NEVER_CHANCE or np.median(leads) > 0:
        return list(order)
    logger.info(
        "%s leads by %.4f, with a standard error of %.4f, and not on most windows: no more than chance",
        *(order[0], lead, error),
    )
    return [order[1], order[0], *order[2:]]


def simple_among(kept: Mapping[str, object]) -> set[str]:
    """Names of `ffn-only`, which may be the start too; none where it is no candidate.

    Args:
        kept: what every candidate keeps, by name, in anything that compares.
    """
    return {name for name in (START, SAFETY_NET) if SAFETY_NET in kept and kept.get(name) == kept[SAFETY_NET]}


def spoken_for(scores: Mapping[str, FloatArray]) -> set[str]:
    """Candidates that other text speaks for than that of the last look: the mean, and a start that says anything.

    Args:
        scores: [N] by name.
    """
    return {name for name in (START, MEAN) if name in scores and np.ptp(scores[name]) > 0}
