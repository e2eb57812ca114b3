"""FLAP's bias compensation: what is removed of a unit is replaced by its mean."""

from __future__ import annotations

import torch

from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import Statistics
from ffprune_env.pruning.unit_layout import member_columns


class FlapBias:
    """Adds W_P · mean(X_P) of the removed columns P to the bias of every output projection; weights stay.

    It serves wherever a :class:`~ffprune_env.pruning.calibration.RidgeCalibration` does; ``save_pruned`` refuses it
    where the biases that it makes have no place in the configuration of the family.

    Args:
        prunable: a ranked model, dense now. Ranking it again makes the compensation void.
        stats: statistics of the dense model.

    Raises:
        RuntimeError: the model is pruned now, or was never ranked.

    Source:
        An et al., Fluctuation-based Adaptive Structured Pruning, arXiv 2312.11983, Sec. 3.
    """

    def __init__(self, prunable: PrunableModel, stats: Statistics) -> None:
        prunable.require_dense("calibrate")
        prunable.require_ranked("calibrate")
        self.prunable = prunable
        self._rankings = prunable.rankings
        self._means = [
            mean.to(order.device)[member_columns(layout, order)]
            for layout, order, mean in zip(prunable.layouts, prunable.order, stats.means, strict=True)
        ]

    def weight(self, i: int, k: int) -> torch.Tensor:
        """The first columns as they are: [C, k * width], a view."""
        self.prunable.require_current(self._rankings)
        layout = self.prunable.layouts[i]
        return layout.output.weight.detach()[:, : k * layout.width]

    @torch.no_grad()
    def bias(self, i: int, k: int) -> torch.Tensor:
        """The dense bias, if there is one, and the mean output of the removed columns: [C]."""
        layout = self.prunable.layouts[i]
        weight, bias = layout.output.weight.detach(), layout.output.bias
        m = k * layout.width
        lost = weight[:, m:].float() @ self._means[i][m:]
        return (lost if bias is None else lost + bias.detach().float()).to(weight.dtype)
