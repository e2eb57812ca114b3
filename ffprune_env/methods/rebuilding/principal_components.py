"""The principal components of the hidden state before every block of a decoder, behind the cuts before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ffprune_env.methods.rebuilding.residual_blocks import Norm, ResidualModel
from ffprune_env.pruning.layer_calls import LayerCalls, layer_calls

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure_bases(
    model: PreTrainedModel, parts: ResidualModel, windows: torch.Tensor, kept: int, batch_size: int
) -> list[torch.Tensor]:
    """The principal components of the hidden state before every block, each measured behind the cuts before it.

    The hidden states of all windows go through the dense model block by block, projected onto what is kept. They are
    taken as they are, before the norm of the block; where that subtracts the mean, without their mean.

    Args:
        model: the dense model.
        parts: the same, taken apart.
        windows: int64 [n, seq_len], calibration text.
        kept: dimensions kept.
        batch_size: windows per forward pass.

    Returns:
        Per block but the head, which nothing is cut before: float64 [width, kept].
    """
    calls = layer_calls(model, torch.split(windows, batch_size))
    states = [call.hidden for call in calls]
    bases: list[torch.Tensor] = []
    for i, block in enumerate(parts.blocks[:-1]):
        if i:
            _run_block(parts, i - 1, calls, states)
        basis = principal_components(_second_moment(states, block.norm), kept)
        bases.append(basis)
        projection = entry_of(basis, block.norm) @ basis.T
        for place, state in enumerate(states):
            exact = state.to(torch.promote_types(torch.float32, state.dtype))
            states[place] = (exact @ projection.to(exact)).to(state.dtype)
    return bases


def _run_block(parts: ResidualModel, i: int, calls: Sequence[LayerCalls], states: list[torch.Tensor]) -> None:
    """Takes the hidden states of all batches from before a block to behind it, in place."""
    block = parts.blocks[i]
    number, is_ffn = divmod(i, 2)
    for place, state in enumerate(states):
        normed = block.norm.module(state)
        if is_ffn:
            states[place] = state + parts.ffns[number](normed)
        else:
            arguments = calls[place].arguments[number]
            states[place] = state + parts.attentions[number](hidden_states=normed, **arguments)[0]


def principal_components(gram: torch.Tensor, kept: int) -> torch.Tensor:
    """The eigenvectors of the largest eigenvalues, in descending order.

    Args:
        gram: [d, d], symmetric.
        kept: how many.

    Returns:
        float64 [d, kept], orthonormal columns.
    """
    ascending: torch.Tensor = torch.linalg.eigh(gram.double()).eigenvectors
    return ascending.flip(1)[:, :kept]


def entry_of(basis: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The matrix that takes what is added to the hidden state into a basis; with LayerNorm its mean goes first."""
    return basis - basis.mean(dim=0) if norm.centres else basis


def _second_moment(states: Sequence[torch.Tensor], norm: Norm) -> torch.Tensor:
    """XᵀX of the hidden state before a norm, without its mean if the norm subtracts it; float64 [width, width].

    Few features of a hidden state are thousands of times as large as the others, so that float32 would not do.

    Raises:
        ValueError: it is not finite.
    """
    total: torch.Tensor | None = None
    for state in states:
        x = state.flatten(0, -2).double()  # (B * T, width)
        if norm.centres:
            x = x - x.mean(dim=-1, keepdim=True)
        total = x.T @ x if total is None else total.addmm_(x.T, x)
    assert total is not None
    if not bool(torch.isfinite(total.diagonal()).all()):
        raise ValueError(f"the input of {norm.module} is not finite on the calibration text: check weights and dtype")
    return total
