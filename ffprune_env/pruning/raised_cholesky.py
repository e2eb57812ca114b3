"""The Cholesky factor of G + λI, with λ raised where there is none."""

from __future__ import annotations

import torch

# How far λ goes each time, and where raising starts if it was 0 and where it ends: fractions of the mean diagonal of G.
_RAISE, LEAST_RIDGE, _MOST_RIDGE = 10.0, 1e-8, 1e6


def raised_cholesky(gram: torch.Tensor, ridge: float, unit: float, mean: float) -> tuple[torch.Tensor, float]:
    """L of G + λI = L Lᵀ, where λ is the one asked for, or that raised tenfold as often as it takes.

    Args:
        gram: [n, n], G = XᵀX; stays as it is.
        ridge: λ to begin with, at least 0.
        unit: what a λ of 1 adds to the diagonal of G.
        mean: mean diagonal of G, above 0, which raising starts and ends by.

    Returns:
        float64 [n, n], L, lower triangular; and λ as it was used.

    Raises:
        ValueError: G is no Gram matrix: even a huge λ does not help.
    """
    matrix = gram.to(torch.float64, copy=True)
    diagonal = matrix.diagonal()
    without_ridge = diagonal.clone()
    while True:
        diagonal.copy_(without_ridge + ridge * unit)
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            return lower, ridge
        if ridge * unit > _MOST_RIDGE * mean:
            raise ValueError("it is no Gram matrix: G + λI has no Cholesky factor for any λ")
        ridge = max(ridge * _RAISE, LEAST_RIDGE * mean / unit)
