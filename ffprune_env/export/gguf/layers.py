"""The decoder layers that are written, and what stands in a file where a layer has no attention or no FFN.

llama.cpp's deci runs a layer without an attention, but takes the size of all heads from the first layer, and loses the
attention of a layer that has no FFN. So there, and in openelm, a head or some channels of zeros are written, which give
0. A layer that has neither is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.export.gguf.families import ARCHITECTURES
from ffprune_env.export.gguf.projections import Projections
from ffprune_env.export.writable import dense_family
from ffprune_env.modeling.absent import absent_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class WrittenLayer:
    """A decoder layer as it is written.

    Attributes:
        layer: of the model.
        projections: its own, or zeros; without an attention that llama.cpp could do without, they have no rows.
    """

    layer: Any
    projections: Projections

    @property
    def has_attention(self) -> bool:
        """Whether an attention is written."""
        return self.projections.queries.out_features > 0


def written_layers(model: PreTrainedModel) -> list[WrittenLayer]:
    """The layers of a model, pruned or dense, that are written, in order.

    Args:
        model: of a family that can be written.
    """
    layers = [layer for layer in model.get_decoder().layers if len(absent_blocks(layer)) < 2]
    native, width = ARCHITECTURES[dense_family(model)] == "deci", model.config.hidden_size
    written = []
    for place, layer in enumerate(layers):
        lacks = absent_blocks(layer)
        parts: dict[str, nn.Linear] = {}
        if "attention" in lacks:
            rows = 0 if native and place else layer.self_attn.head_dim
            parts |= {name: _zeros(width, rows) for name in ("queries", "keys", "values")}
            parts["attention"] = _zeros(rows, width)
        if "ffn" in lacks:
            parts |= {"gate": _zeros(width, 1), "up": _zeros(width, 1), "down": _zeros(1, width)}
        written.append(WrittenLayer(layer, Projections.of(layer, parts)))
    return written


def norm_weight(norm: nn.Module, width: int) -> torch.Tensor:
    """What a norm multiplies by: ones where it is gone.

    Args:
        norm: the norm, or what stands in its place.
        width: of what it normalizes.
    """
    weight = getattr(norm, "weight", None)
    return torch.ones(width) if weight is None else weight


def _zeros(columns: int, rows: int) -> nn.Linear:
    linear = nn.Linear(columns, max(1, rows), bias=False, device="meta")  # torch warns of none
    linear.weight, linear.out_features = nn.Parameter(torch.zeros(rows, columns), requires_grad=False), rows
    return linear
