"""Optimal Brain Surgeon: heads or channels go one by one, the one first whose loss the others restore best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.lm.phases import phase
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.ridge import DEFAULT_RIDGE, RidgeScale, ridge_unit
from ffprune_env.pruning.saliency import to_original_order

# Channels go in this many rounds, as many in each; what is taken in one round is scored before any of it went.
_ROUNDS = 96


def surgeon_scores(
    prunable: PrunableModel,
    grams: Iterable[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    ridge: float = DEFAULT_RIDGE,
    scale: RidgeScale = "relative",
) -> list[FloatArray]:
    """Scores every head or channel by when it goes: 0 for the first, n_members - 1 for the last.

    Let H = (G + λI)⁻¹. Removing head or channel q and re-fitting the rest by Eqs. 6-7 leaves the output an error whose
    loss, with F = E[g gᵀ] for the curvature of the loss at the output, is ½ tr(F W_q (H_qq)⁻¹ W_qᵀ). The one with the
    least goes, W and H become those of what is left, W ← W - W_q (H_qq)⁻¹ H_q· and H ← H - H_·q (H_qq)⁻¹ H_q·, and so
    on. The sum of all these losses is exactly the loss of the calibrated unit, whatever was removed together.

    Args:
        prunable: the model, dense now.
        grams: per unit, [columns, columns] G in original column order, read one at a time.
        outputs: per unit, [C, C] F, see :class:`~ffprune_env.pruning.gradients.GradientStatistics`.
        ridge: λ as the calibration will have it.
        scale: its unit; see :data:`~ffprune_env.pruning.ridge.RidgeScale`.

    Returns:
        N arrays, [n_members] each, in original order.

    Source:
        Hassibi and Stork, Optimal Brain Surgeon (1992); with structures, Kurtic et al., ZipLM, arXiv 2302.04089; the
        curvature as in K-FAC, Martens and Grosse, arXiv 1503.05671.
    """
    prunable.require_dense("score")
    scores = []
    n = len(prunable.units)
    with phase("scores by surgeon", f"{n} units", n) as advance:
        for i, (layout, gram, moment) in enumerate(zip(prunable.layouts, grams, outputs, strict=True)):
            weight = to_original_order(prunable, i, layout.output.weight.detach().float().T).T
            matrix = gram.to(weight.device).double()
            # A unit whose Gram matrix has no inverse at this λ gets more, as its calibration does.
            mean = max(float(matrix.diagonal().mean()), 1e-12)
            matrix.diagonal().add_(max(ridge * ridge_unit(scale, mean), 1e-6 * mean))
            inverse = torch.linalg.inv(matrix).float()
            values, vectors = torch.linalg.eigh(moment.to(weight.device).double())
            root = (vectors * values.clamp(min=0).sqrt()).T.float()  # F = rootᵀ root
            order = eliminate(root @ weight, inverse, layout.member_width, _ROUNDS)
            score = np.empty(layout.n_members)
            score[order] = np.arange(len(order))
            scores.append(score)
            advance()
    return scores


def eliminate(weight: torch.Tensor, inverse: torch.Tensor, width: int, rounds: int) -> list[int]:
    """The order in which heads or channels go.

    Args:
        weight: [C, columns], in a metric in which the loss is half a sum of squares.
        inverse: [columns, columns], H.
        width: columns of each.
        rounds: of which each takes as many of them, at least one.

    Returns:
        Every one of them once, the one that goes first at the front.
    """
    count = weight.shape[1] // width
    left = torch.arange(count, device=weight.device)
    order: list[int] = []
    at_once = max(1, count // rounds)
    while len(left):
        # (H_qq)⁻¹ of every one, [left, width, width], and W_q, [left, C, width]
        blocks = inverse.view(len(left), width, len(left), width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        parts = weight.view(len(weight), len(left), width).permute(1, 0, 2)
        losses = (torch.linalg.solve(blocks, parts.mT).mT * parts).sum(dim=(1, 2))
        gone = losses.argsort(stable=True)[:at_once]
        order += left[gone].tolist()
        stay = torch.ones(len(left), dtype=torch.bool, device=weight.device)
        stay[gone] = False
        columns = stay.repeat_interleave(width)
        if not stay.any():
            break
        update = torch.linalg.solve(inverse[~columns][:, ~columns], inverse[~columns][:, columns])
        weight = weight[:, columns] - weight[:, ~columns] @ update
        inverse = inverse[columns][:, columns] - inverse[columns][:, ~columns] @ update
        left = left[stay]
    return order
