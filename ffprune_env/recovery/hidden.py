"""The hidden states behind every layer, and how far those of a pruned model are from the dense model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.lm.head import decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a squared length, so that a token without one does not divide by nothing.
_LEAST = 1e-12


@contextmanager
def noting_layers(model: PreTrainedModel) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, every layer leaves what it hands on, [B, T, C], under its number."""
    found: dict[int, torch.Tensor] = {}

    def note(i: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[i] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [layer.register_forward_hook(note(i)) for i, layer in enumerate(layers_of(model))]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a model."""
    return list(getattr(decoder_of(model), "layers", ()))


def require_same_layers(pruned: PreTrainedModel, dense: PreTrainedModel) -> None:
    """Raises ValueError unless the hidden states of two models can be compared: as many layers, of one width."""
    (n, width), (n_dense, width_dense) = ((len(layers_of(x)), x.config.hidden_size) for x in (pruned, dense))
    if not n or n != n_dense or width != width_dense:
        raise ValueError(
            f"hidden states cannot be compared: the pruned model has {n} layers of width {width}, the dense one "
            f"{n_dense} of width {width_dense}: leave out the weight of hidden states"
        )


def hidden_errors(found: dict[int, torch.Tensor], dense: Sequence[torch.Tensor], scored: torch.Tensor) -> torch.Tensor:
    """Σ over tokens of the mean over layers of ‖h - h_dense‖² / ‖h_dense‖².

    A few tokens have hidden states a thousand times as long as others: so every token is relative to itself.

    Args:
        found: by layer, [B, T, C].
        dense: the same of the dense model, in order.
        scored: bool [B, T - 1], the tokens that count.
    """
    total = []
    for i, goal in enumerate(dense):
        mine = found[i][:, :-1][scored]
        rows = goal.to(mine.device)[:, :-1][scored].to(torch.promote_types(mine.dtype, torch.float32))
        error = (mine.to(rows.dtype) - rows).square().sum(dim=-1)
        total.append((error / rows.square().sum(dim=-1).clamp(min=_LEAST)).sum())
    return torch.stack(total).mean()
