"""`flap`: one threshold over the standardized fluctuations of all columns of the model."""

from __future__ import annotations

import numpy as np
import torch

from ffprune_env.budget.allocation import Allocation, cost_limit, one_group, settle
from ffprune_env.budget.cost_tables import CostTables
from ffprune_env.budget.units import PruneUnit
from ffprune_env.pruning.saliency import fluctuations
from ffprune_env.search.problem import Problem


def flap(problem: Problem) -> Allocation:
    """FLAP's allocation: the groups whose fluctuation stands out most in their unit stay, whichever unit they are in.

    Fluctuations of columns (see :func:`~ffprune_env.pruning.saliency.fluctuations`) are z-scored within their unit,
    which makes units comparable, and averaged over a head, or over as many channels as make a group, those that stand
    out alike. Groups of all units are then taken in descending order, each at the price of its parameters, until the
    budget is used. Only the number kept per unit is taken from here; which ones they are is the ranking's business.

    Args:
        problem: what to answer; nothing is measured.

    Raises:
        ValueError: the problem has no model, or the sparsity leaves less than one group per unit.

    Source:
        An et al., Fluctuation-based Adaptive Structured Pruning, arXiv 2312.11983; github.com/CASIA-IVA-Lab/FLAP, whose
        default ("WIFV", "AL-AM") this is. What differs is in docs/methods.md.
    """
    if problem.prunable is None or problem.stats is None:
        raise ValueError("flap looks at activations: it needs a model and its statistics")
    scores = []
    for layout, columns in zip(problem.prunable.layouts, fluctuations(problem.prunable, problem.stats), strict=True):
        standardized = (columns - columns.mean()) / columns.std().clamp(min=1e-20)
        members = standardized.view(-1, layout.member_width).mean(dim=1)
        ranked = members[torch.from_numpy(layout.best_first(members.cpu().numpy())).to(members.device)]
        scores.append(ranked.view(layout.unit.n_groups, -1).mean(dim=1).cpu().numpy())
    return threshold(scores, problem.sparsity, problem.units)


def threshold(scores: list[np.ndarray], sparsity: float, units: tuple[PruneUnit, ...]) -> Allocation:
    """Keeps the best-scored groups of the whole model that fit the budget, and one group of every unit in any case.

    Args:
        scores: N arrays of [n_groups].
        sparsity: σ.
        units: the N units.
    """
    owner = np.repeat(np.arange(len(units)), [unit.n_groups for unit in units])
    values = np.concatenate(scores)
    for i, score in enumerate(scores):  # the best group of every unit stays in any case
        values[np.flatnonzero(owner == i)[int(np.argmax(score))]] = np.inf
    tables = CostTables.of_units(units)
    left = cost_limit(sparsity, units, tables) - sum(int(table[0]) for table in tables.of)
    kept = np.zeros(len(units), dtype=np.int64)
    for group in np.argsort(-values, kind="stable"):
        i = owner[group]
        price = int(tables.of[i][kept[i] + 1] - tables.of[i][kept[i]])
        if price <= left:  # a head that does not fit leaves room for channels
            kept[i] += 1
            left -= price
    return settle(kept, kept / [unit.n_groups for unit in units], sparsity, units, a_min=one_group(units))
