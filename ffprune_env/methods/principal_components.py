"""The principal components of the hidden state before every block of a decoder, behind the cuts before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ffprune_env.methods.residual_blocks import Norm, ResidualModel
from ffprune_env.pruning.layer_calls import layer_calls

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure_bases(
    model: PreTrainedModel, parts: ResidualModel, windows: torch.Tensor, kept: int, batch_size: int
) -> list[torch.Tensor]:
    """The principal components of the signal before every block, each measured behind the cuts before it.

    The hidden states of all windows go through the dense model block by block, projected onto what is kept.

    Args:
        model: the dense model.
        parts: the same, taken apart.
        windows: int64 [n, seq_len], calibration text.
        kept: dimensions kept.
        batch_size: windows per forward pass.

    Returns:
        Per block, float64 [width, kept].
    """
    calls = layer_calls(model, torch.split(windows, batch_size))
    states = [call.hidden for call in calls]
    bases = []
    for i, block in enumerate(parts.blocks):
        basis = principal_components(_second_moment(states, block.norm), kept)
        bases.append(basis)
        if block.output is not None:
            projection = entry_of(basis, block.norm) @ basis.T
            number, is_ffn = divmod(i, 2)
            for place, state in enumerate(states):
                exact = state.to(torch.promote_types(torch.float32, state.dtype))
                state = (exact @ projection.to(exact)).to(state.dtype)
                normed = block.norm.module(state)
                if is_ffn:
                    states[place] = state + parts.ffns[number](normed)
                else:
                    states[place] = (
                        state + parts.attentions[number](hidden_states=normed, **calls[place].arguments[number])[0]
                    )
    return bases


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
    """G = XᵀX of what a norm gives without its scale; ValueError where it is not finite."""
    total: torch.Tensor | None = None
    for state in states:
        x = norm.scale_free(state).flatten(0, -2)  # (B * T, width)
        total = x.T @ x if total is None else total.addmm_(x.T, x)
    assert total is not None
    if not bool(torch.isfinite(total.diagonal()).all()):
        raise ValueError(f"the input of {norm.module} is not finite on the calibration text: check weights and dtype")
    return total
