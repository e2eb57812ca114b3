"""SVD-LLM's update in closed form: layer after layer, second factors are fitted to what really reaches them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ffprune_env.methods.rebuilding.low_rank import LowRankLinear, whitening_root
from ffprune_env.methods.rebuilding.projections import SharedInput, require_finite, summed_products
from ffprune_env.pruning.layer_calls import layer_calls

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Least squares on fewer tokens than so many per unknown of a row spoil factors more than they improve them. The
# authors' own fit has a dozen or more.
_TOKENS_PER_RANK = 4


@torch.no_grad()
def update_second_factors(
    dense: PreTrainedModel,
    compressed: PreTrainedModel,
    inputs: Sequence[Sequence[SharedInput]],
    windows: torch.Tensor,
    batch_size: int,
) -> None:
    """Fits the second factor of every low-rank projection by least squares, in place.

    The text goes through the compressed model layer by layer. Every layer is first run as it was in the dense model, on
    what the compressed layers before it give; that shows what its projections W then read, X, and should give, X Wᵀ.
    With F for the first factor the second becomes argmin_S ‖X Wᵀ - X Fᵀ Sᵀ‖ = W G Fᵀ (F G Fᵀ)⁻¹, G = XᵀX. In the
    first layer, behind which nothing is compressed yet, it is so already. A factor of a rank that the text is too short
    for, four tokens to each, stays as it is, which is logged and
    noted in ``lacks_update``. The hidden states of all the text are in memory at once.

    Args:
        dense: the model before its compression; it is not changed.
        compressed: the same with :class:`~ffprune_env.methods.rebuilding.low_rank.LowRankLinear` in the place of
            projections.
        inputs: per decoder layer of the compressed model, its projections by what they read.
        windows: int64 [n, seq_len], calibration text.
        batch_size: windows per forward pass.

    Raises:
        ValueError: what a projection reads is not finite.
    """
    calls = layer_calls(dense, torch.split(windows, batch_size))
    states = [call.hidden for call in calls]
    short: list[int] = []  # ranks
    for number, groups in enumerate(inputs):
        # They read the same tensors, so one of each group stands for it.
        readers = [calls[0].layers[number].get_submodule(group.names[0]) for group in groups]
        with summed_products(readers) as grams:
            for call, state in zip(calls, states, strict=True):
                call.layers[number](state, **call.arguments[number])
        for place, group in enumerate(groups):
            require_finite(grams[place], readers[place])
            gram = grams.pop(place).double()
            for name in group.names:
                low_rank = group.layer.get_submodule(name)
                if isinstance(low_rank, LowRankLinear) and _TOKENS_PER_RANK * low_rank.rank > windows.numel():
                    low_rank.lacks_update = True
                    short.append(low_rank.rank)
                elif isinstance(low_rank, LowRankLinear):
                    weight = calls[0].layers[number].get_submodule(name).weight
                    assert isinstance(weight, torch.Tensor)
                    second = low_rank.second.weight
                    second.copy_(best_second(weight, low_rank.first.weight, gram.to(weight.device)))
        for place, (call, state) in enumerate(zip(calls, states, strict=True)):
            states[place] = groups[0].layer(state, **call.arguments[number])
    if short:
        logger.warning(
            "SVD-LLM: %d matrices go without the update of their factors: %d tokens of calibration text are too few "
            "for ranks up to %d, %d would do",
            *(len(short), windows.numel(), max(short), _TOKENS_PER_RANK * max(short)),
        )


def best_second(weight: torch.Tensor, first: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The S that minimizes ‖X Wᵀ - X Fᵀ Sᵀ‖.

    Args:
        weight: [m, n], W.
        first: [rank, n], F.
        gram: float64 [n, n], XᵀX.

    Returns:
        float64 [m, rank].
    """
    first = first.double()
    crossed = first @ gram  # (rank, n)
    root = whitening_root(crossed @ first.T)
    return torch.cholesky_solve(crossed @ weight.double().T, root).T
