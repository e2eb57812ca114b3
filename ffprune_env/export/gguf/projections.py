"""The projections of a decoder layer, each a matrix of its own, as llama.cpp wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ffprune_env.pruning.fused import row_views


@dataclass(frozen=True)
class Projections:
    """What a layer projects with: parts of the model, or views of their rows where the family fuses them.

    Attributes:
        queries, keys, values, attention: of the attention; the last is its output.
        gate, up, down: of the FFN.
    """

    queries: nn.Linear
    keys: nn.Linear
    values: nn.Linear
    attention: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    @classmethod
    def of(cls, layer: Any, instead: Mapping[str, nn.Linear] | None = None) -> Projections:
        """Those of a decoder layer with a gated FFN.

        Args:
            layer: the layer.
            instead: of what it does not have.
        """
        parts = dict(instead or {})
        if "queries" not in parts:
            parts |= cls._of_attention(layer.self_attn)
        if "gate" not in parts:
            parts |= cls._of_ffn(layer.mlp)
        return cls(**parts)

    @staticmethod
    def _of_attention(attention: Any) -> dict[str, nn.Linear]:
        if hasattr(attention, "qkv_proj"):
            key_rows = attention.config.num_key_value_heads * attention.head_dim
            fused = attention.qkv_proj
            queries, keys, values = row_views(fused, [fused.out_features - 2 * key_rows, key_rows, key_rows])
        else:
            queries, keys, values = attention.q_proj, attention.k_proj, attention.v_proj
        return {"queries": queries, "keys": keys, "values": values, "attention": attention.o_proj}

    @staticmethod
    def _of_ffn(ffn: Any) -> dict[str, nn.Linear]:
        if hasattr(ffn, "gate_up_proj"):
            gate, up = row_views(ffn.gate_up_proj, [ffn.gate_up_proj.out_features // 2] * 2)
        else:
            gate, up = ffn.gate_proj, ffn.up_proj
        return {"gate": gate, "up": up, "down": ffn.down_proj}
