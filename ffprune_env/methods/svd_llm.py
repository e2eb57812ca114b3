"""SVD-LLM: every projection becomes a product of two thin ones that loses least on the calibration text."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffprune_env.methods.projections import SharedInput, linear_of, second_moments, shared_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Memory for Gram matrices of one run; a 7B model takes six runs.
_GRAM_BYTES = 4 * 2**30
# What is added to G, as a fraction of its mean diagonal, and how far it is raised where G has no Cholesky factor.
_RIDGE, _RAISE, _MOST_RIDGE = 1e-8, 10.0, 1e6


class LowRankLinear(nn.Module):
    """Two linear layers in sequence that stand in for one.

    Args:
        first: in_features to rank, without bias.
        second: rank to out_features, with the bias.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.in_features, self.out_features = first.in_features, second.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        y: torch.Tensor = self.second(self.first(x))
        return y

    @property
    def weight(self) -> torch.Tensor:
        """[out_features, in_features], the product, for code that reads the weight of a projection."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """[out_features]."""
        return self.second.bias


@torch.no_grad()
def svd_llm(model: PreTrainedModel, windows: torch.Tensor, removed: int, batch_size: int = 1) -> PreTrainedModel:
    """Compresses all projections of the decoder layers by truncation-aware data whitening, at one ratio.

    A matrix of m rows and n columns gets rank floor(ratio · m n / (m + n)); the ratio is the largest that removes
    enough. This is the whitening of the paper on statistics of the dense model, without its later update of the
    weights. The text is run through the copy once for every 4 GiB of Gram matrices, the last layers first, so that
    what was factored already is behind what is measured.

    Args:
        model: a dense causal language model; it is not changed.
        windows: int64 [n, seq_len], calibration text.
        removed: parameters of the whole model that must go; 0 factors nothing.
        batch_size: windows per forward pass.

    Returns:
        A compressed copy, in evaluation mode.

    Raises:
        ValueError: more are to go than rank 1 everywhere removes, or fewer than none; there are no windows; the model
            has linear layers that cannot be replaced.

    Source:
        Wang et al., SVD-LLM, arXiv 2403.07378.
    """
    compressed = copy.deepcopy(model).eval()
    inputs = [group for layer in shared_inputs(compressed, windows) for group in layer]
    shapes = Counter((x.out_features, x.in_features) for group in inputs for x in group.linears)
    ratio = ratio_for(shapes, removed)
    if ratio < 1:
        for group, gram in _grams_from_the_end(compressed, inputs, windows, batch_size):
            root = whitening_root(gram)
            for name, linear in zip(group.names, group.linears, strict=True):
                rank = rank_at(ratio, linear.out_features, linear.in_features)
                if rank * (linear.out_features + linear.in_features) < linear.weight.numel():
                    group.layer.set_submodule(name, _factored(linear, root, rank))
    before, after = (sum(p.numel() for p in x.parameters()) for x in (model, compressed))
    logger.info("SVD-LLM: ratio %.4f removes %d of %d parameters (asked: %d)", ratio, before - after, before, removed)
    return compressed


def ratio_for(shapes: Counter[tuple[int, int]], removed: int) -> Fraction:
    """The largest ratio that removes enough parameters.

    Args:
        shapes: how many matrices there are of each shape (m, n).
        removed: parameters that must go.

    Returns:
        The ratio, exactly; 1 if nothing must go.

    Raises:
        ValueError: rank 1 everywhere does not remove as much, or ``removed`` is negative.
    """
    if removed == 0:
        return Fraction(1)
    # Ranks change at these ratios only, and between them the larger ratio removes the same.
    steps = {Fraction(r * (m + n), m * n) for m, n in shapes for r in range(1, -(-m * n // (m + n)))}
    ratios = sorted(steps)
    most = _removed_at(ratios[0], shapes) if ratios else 0
    if not 0 <= removed <= most:
        raise ValueError(f"SVD-LLM can remove 0 to {most} parameters of this model, {removed} were asked for")
    few, many = 0, len(ratios)  # ratios[few] removes enough, ratios[many] does not
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if _removed_at(ratios[middle], shapes) >= removed else (few, middle)
    return ratios[few]


def rank_at(ratio: Fraction, m: int, n: int) -> int:
    """Rank of an m by n matrix whose two factors hold at most that fraction of its parameters; 1 at the least."""
    return max(1, int(ratio * m * n / (m + n)))


def _removed_at(ratio: Fraction, shapes: Counter[tuple[int, int]]) -> int:
    return sum(count * max(0, m * n - rank_at(ratio, m, n) * (m + n)) for (m, n), count in shapes.items())


def _grams_from_the_end(
    model: PreTrainedModel, inputs: Sequence[SharedInput], windows: torch.Tensor, batch_size: int
) -> Iterator[tuple[SharedInput, torch.Tensor]]:
    """Yields G of every input, the last first, in as many runs over the text as it takes for them to fit."""
    left = list(inputs)
    while left:
        chunk: list[SharedInput] = []
        taken = 0
        while left:
            linear = left[-1].linears[0]
            taken += torch.promote_types(torch.float32, linear.weight.dtype).itemsize * linear.in_features**2
            if taken > _GRAM_BYTES and chunk:
                break
            chunk.append(left.pop())
        grams = second_moments(model, [group.linears[0] for group in chunk], windows, batch_size)
        for group in chunk:
            yield group, grams.pop(0)  # taken off the list, so that what was used can be freed


def whitening_root(gram: torch.Tensor) -> torch.Tensor:
    """The lower triangular S with S Sᵀ = G + λI, λ as small as it can be.

    Args:
        gram: [n, n], G = XᵀX.

    Returns:
        float64 [n, n].
    """
    matrix = gram.double()
    mean = float(matrix.diagonal().mean())
    scale = mean if mean > 0 else 1.0  # an input that is always zero: any weights will do
    root: torch.Tensor
    ridge = _RIDGE
    while ridge <= _MOST_RIDGE:
        shift = torch.full_like(matrix.diagonal(), ridge * scale)
        root, failed = torch.linalg.cholesky_ex(matrix + torch.diag(shift))
        if not int(failed):
            return root
        logger.debug("G + λI has no Cholesky factor with λ = %g of the mean diagonal", ridge)
        ridge *= _RAISE
    raise ValueError("the second moments of an input have no Cholesky factor: they are no Gram matrix")


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


def _factored(linear: nn.Linear, root: torch.Tensor, rank: int) -> LowRankLinear:
    weight = linear.weight
    second, first = low_rank_factors(weight, root.to(weight.device), rank)
    return LowRankLinear(
        linear_of(first.to(weight.dtype)), linear_of(second.contiguous().to(weight.dtype), linear.bias)
    )
