"""Pruned models that load like any other: the dense family's own code, around smaller matrices.

This file is written into the folder of every pruned model, so it needs nothing but torch, transformers and the two
files beside it.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from .attention import require_indexable, use_indexed_attention
from .config_names import CHANNELS_KEY, HEADS_KEY, PREFIX, named_as_pruned


class PrunedConfig:
    """What the configurations of all families have in common.

    Raises:
        ValueError: the shapes of the layers are missing, or are not one positive number for each.
    """

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a config.json."""
        settings, unused = super().get_config_dict(*args, **kwargs)  # type: ignore[misc]
        return named_as_pruned(settings), unused

    def to_json_string(self, use_diff: bool = True) -> str:
        """What is written to a config.json; the model type in it is that of the dense family."""
        settings = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        settings["model_type"] = self.model_type.removeprefix(PREFIX)  # type: ignore[attr-defined]
        return json.dumps(settings, indent=2, sort_keys=True) + "\n"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        for key in (HEADS_KEY, CHANNELS_KEY):
            sizes, layers = getattr(self, key, None), self.num_hidden_layers  # type: ignore[attr-defined]
            # Libraries make a configuration from nothing to see its defaults, and compare with it.
            if sizes is None and not hasattr(self, HEADS_KEY):
                continue
            if not isinstance(sizes, list) or len(sizes) != layers or not all(type(n) is int and n > 0 for n in sizes):
                raise ValueError(f"config key {key} must list {layers} positive integers, one per layer; got {sizes}")


class PrunedLlamaConfig(PrunedConfig, LlamaConfig):
    """Llama with its own number of heads and channels in every layer."""

    model_type = "ffprune_llama"


class PrunedMistralConfig(PrunedConfig, MistralConfig):
    """Mistral with its own number of heads and channels in every layer."""

    model_type = "ffprune_mistral"


class PrunedQwen2Config(PrunedConfig, Qwen2Config):
    """Qwen2 with its own number of heads and channels in every layer."""

    model_type = "ffprune_qwen2"


class PrunedOPTConfig(PrunedConfig, OPTConfig):
    """OPT with its own number of heads and channels in every layer."""

    model_type = "ffprune_opt"


class PrunedModel:
    """Builds the dense model, then gives every layer the sizes that its configuration lists.

    Nothing is allocated for what goes away where models are built on the meta device, as ``from_pretrained`` does.
    Under grouped-query attention keys and values stay whole, and a layer that lost query heads holds ``kv_index``: the
    key/value head of each one that is left. Layers that lost none run as they always did.

    Args:
        config: a pruned configuration of the same family.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._grouped: list[nn.Module] = []
        for i, layer in enumerate(self.get_decoder().layers):  # type: ignore[attr-defined]
            attention, heads = layer.self_attn, getattr(config, HEADS_KEY)[i]
            grouped = attention.k_proj.out_features != attention.q_proj.out_features
            _cut_rows(attention, ("q_proj",) if grouped else ("q_proj", "k_proj", "v_proj"), heads * attention.head_dim)
            _cut_columns(attention, ("o_proj", "out_proj"), heads * attention.head_dim)
            if grouped and heads < config.num_attention_heads:
                index = torch.zeros(heads, dtype=torch.int64, device=attention.k_proj.weight.device)
                attention.register_buffer("kv_index", index)
                self._grouped.append(attention)
            if hasattr(attention, "num_heads"):  # OPT; the others infer it from the projection's width
                attention.num_heads = heads
            ffn = getattr(layer, "mlp", layer)
            _cut_rows(ffn, ("gate_proj", "up_proj", "fc1"), getattr(config, CHANNELS_KEY)[i])
            _cut_columns(ffn, ("down_proj", "fc2"), getattr(config, CHANNELS_KEY)[i])
        self._index_keys()

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Switches between eager and sdpa, and keeps the index of the keys; other kernels need every query head."""
        if self._grouped:
            require_indexable(str(attn_implementation))
        super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]
        self._index_keys()

    def _index_keys(self) -> None:
        if self._grouped:
            use_indexed_attention(self, self._grouped)


class PrunedLlamaForCausalLM(PrunedModel, LlamaForCausalLM):
    """A pruned Llama."""

    config_class = PrunedLlamaConfig


class PrunedMistralForCausalLM(PrunedModel, MistralForCausalLM):
    """A pruned Mistral."""

    config_class = PrunedMistralConfig


class PrunedQwen2ForCausalLM(PrunedModel, Qwen2ForCausalLM):
    """A pruned Qwen2."""

    config_class = PrunedQwen2Config


class PrunedOPTForCausalLM(PrunedModel, OPTForCausalLM):
    """A pruned OPT."""

    config_class = PrunedOPTConfig


#: Models by the model type of the dense family.
PRUNED_MODELS: dict[str, Any] = {
    "llama": PrunedLlamaForCausalLM,
    "mistral": PrunedMistralForCausalLM,
    "qwen2": PrunedQwen2ForCausalLM,
    "opt": PrunedOPTForCausalLM,
}

for _model in PRUNED_MODELS.values():  # save_pretrained writes this file beside the weights
    _model.config_class.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForCausalLM")


def _cut_rows(owner: nn.Module, names: tuple[str, ...], rows: int) -> None:
    for name in names:
        if hasattr(owner, name):
            old = getattr(owner, name)
            setattr(owner, name, _linear_like(old, old.in_features, rows))


def _cut_columns(owner: nn.Module, names: tuple[str, ...], columns: int) -> None:
    for name in names:
        if hasattr(owner, name):
            old = getattr(owner, name)
            setattr(owner, name, _linear_like(old, columns, old.out_features))


def _linear_like(old: nn.Linear, in_features: int, out_features: int) -> nn.Linear:
    weight, bias = old.weight, old.bias is not None
    return nn.Linear(in_features, out_features, bias, device=weight.device, dtype=weight.dtype)
