"""A linear layer as a product of two thin ones, the best for the inputs that it sees."""

from __future__ import annotations

import logging

import torch
from torch import nn

from ffprune_env.pruning.linear_from import linear_from
from ffprune_env.pruning.raised_cholesky import LEAST_RIDGE, raised_cholesky

logger = logging.getLogger(__name__)


class LowRankLinear(nn.Module):
    """Two linear layers in sequence that stand in for one.

    Args:
        first: in_features to rank, without bias.
        second: rank to out_features, with the bias.

    Attributes:
        first, second: as given.
        lacks_update: whether the text was too short to fit the second to what really reaches it.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.in_features, self.out_features = first.in_features, second.out_features
        self.lacks_update = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        y: torch.Tensor = self.second(self.first(x))
        return y

    @property
    def rank(self) -> int:
        """Columns of the second, which are rows of the first."""
        return self.first.out_features

    @property
    def weight(self) -> torch.Tensor:
        """[out_features, in_features], the product, for code that reads the weight of a projection."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """[out_features]."""
        return self.second.bias


def lacking_update(model: nn.Module) -> int:
    """How many matrices of a model go without the update of their factors, for want of text."""
    return sum(isinstance(module, LowRankLinear) and module.lacks_update for module in model.modules())


def whitening_root(gram: torch.Tensor) -> torch.Tensor:
    """The lower triangular S with S Sᵀ = G + λI: λ is 1e-8 of the mean diagonal of G, or more where that is too little.

    Args:
        gram: [n, n], G = XᵀX.

    Returns:
        float64 [n, n].

    Raises:
        ValueError: G is no Gram matrix.
    """
    mean = float(gram.diagonal().double().mean())
    scale = mean if mean > 0 else 1.0  # an input that is always zero: any weights will do
    try:
        root, used = raised_cholesky(gram, LEAST_RIDGE, scale, scale)
    except ValueError as error:
        raise ValueError(f"the second moments of an input are wrong: {error}") from error
    if used > LEAST_RIDGE:
        logger.debug("G + λI has no Cholesky factor with less than λ = %g of the mean diagonal", used)
    return root


def low_rank_factors(weight: torch.Tensor, root: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of the matrix W' of a given rank that minimizes ‖(W - W') S‖, which is ‖X Wᵀ - X W'ᵀ‖.

    With W S = U Σ Vᵀ the paper's W' is U_r Σ_r V_rᵀ S⁻¹. Since U_rᵀ (W S) = Σ_r V_rᵀ, that is U_r (U_rᵀ W): the same
    matrix without an inverse, which an S near singular would spoil.

    Args:
        weight: [m, n].
        root: float64 [n, n], S.
        rank: 1 to min(m, n).

    Returns:
        float64 [m, rank] and [rank, n].
    """
    exact = weight.double()
    directions = torch.linalg.svd(exact @ root, full_matrices=False).U[:, :rank]
    return directions, directions.T @ exact


def factored(linear: nn.Linear, root: torch.Tensor, rank: int) -> LowRankLinear:
    """A linear layer in two, with the bias at the end.

    Args:
        linear: the layer.
        root: float64 [in_features, in_features], S with S Sᵀ = XᵀX of its input.
        rank: 1 to the smaller of its sizes.
    """
    weight = linear.weight
    second, first = low_rank_factors(weight, root.to(weight.device), rank)
    return LowRankLinear(
        linear_from(first.to(weight.dtype)), linear_from(second.contiguous().to(weight.dtype), linear.bias)
    )
