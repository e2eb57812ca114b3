"""The families that are served: vLLM's own classes, with layers of many sizes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.models import commandr, gemma, gemma2, gemma3, granite, llama, opt, phi3, qwen2, qwen3

from ffprune_vllm.layers import own_sizes, replaced
from ffprune_vllm.shapes import LayerShape, layer_shapes, require_parallel
from ffprune_vllm.weights import served_weights


class Pruned:
    """What the families have in common; it stands before vLLM's class among the bases.

    Attributes:
        family: the module of vLLM whose model builds the layers.
        shapes: of all layers.
    """

    family: ClassVar[ModuleType]
    shapes: tuple[LayerShape, ...]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        shapes = layer_shapes(config)
        require_parallel(shapes, get_tensor_model_parallel_world_size())
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        with ExitStack() as stack:
            stack.enter_context(own_sizes(self.family, config, shapes, head_dim))
            self.prepare(config, stack)
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.shapes = shapes

    def prepare(self, config: Any, stack: ExitStack) -> None:
        """Changes what a family needs changed while its layers are built."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint; returns the names of what was loaded."""
        loaded: set[str] = super().load_weights(served_weights(weights, self.shapes))  # type: ignore[misc]
        return loaded


class PrunedLlamaForCausalLM(Pruned, llama.LlamaForCausalLM):
    """A pruned Llama."""

    family = llama


class PrunedMistralForCausalLM(Pruned, llama.LlamaForCausalLM):
    """A pruned Mistral."""

    family = llama


class PrunedQwen2ForCausalLM(Pruned, llama.LlamaForCausalLM):
    """A pruned Qwen2: a Llama with biases, since vLLM's own takes the width of a head from their number."""

    family = llama

    def prepare(self, config: Any, stack: ExitStack) -> None:
        """Gives queries, keys and values their biases."""
        config.qkv_bias = True


class PrunedPhi3ForCausalLM(Pruned, phi3.Phi3ForCausalLM):
    """A pruned Phi-3, whose attention is whole."""

    family = llama


class PrunedQwen3ForCausalLM(Pruned, qwen3.Qwen3ForCausalLM):
    """A pruned Qwen3."""

    family = qwen2  # whose model it is


class PrunedGemmaForCausalLM(Pruned, gemma.GemmaForCausalLM):
    """A pruned Gemma."""

    family = gemma


class PrunedGemma2ForCausalLM(Pruned, gemma2.Gemma2ForCausalLM):
    """A pruned Gemma 2."""

    family = gemma2


class PrunedGemma3ForCausalLM(Pruned, gemma3.Gemma3ForCausalLM):
    """A pruned Gemma 3, its text model."""

    family = gemma3


class PrunedGraniteForCausalLM(Pruned, granite.GraniteForCausalLM):
    """A pruned Granite."""

    family = granite


class PrunedCohereForCausalLM(Pruned, commandr.CohereForCausalLM):
    """A pruned Cohere."""

    family = commandr


class PrunedCohere2ForCausalLM(Pruned, commandr.CohereForCausalLM):
    """A pruned Cohere 2."""

    family = commandr


class Unrotated(nn.Module):
    """Stands in for the rotation of a layer that has none."""

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns queries and keys as they are."""
        return query, key


class PrunedSmolLM3ForCausalLM(Pruned, llama.LlamaForCausalLM):
    """A pruned SmolLM3: a Llama, some of whose layers do not rotate."""

    family = llama

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        rotates = vllm_config.model_config.hf_config.no_rope_layers  # its ones, in spite of the name
        for i, layer in enumerate(self.model.layers):
            if not rotates[i] and hasattr(layer, "self_attn"):  # layers of another stage of a pipeline have none
                layer.self_attn.rotary_emb = Unrotated()


class OPTAttention(opt.OPTAttention):
    """Attention of OPT whose heads may be fewer than fill the hidden state; the arguments are those of its base."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        cache_config: Any = None,
        quant_config: Any = None,
        prefix: str = "",
    ) -> None:
        nn.Module.__init__(self)
        self.embed_dim = embed_dim
        self.num_heads = num_heads // get_tensor_model_parallel_world_size()
        self.head_dim: int = get_current_vllm_config().model_config.hf_config.head_dim
        self.scaling = self.head_dim**-0.5
        self.qkv_proj = QKVParallelLinear(
            embed_dim, self.head_dim, num_heads, bias=bias, quant_config=quant_config, prefix=f"{prefix}.qkv_proj"
        )
        self.out_proj = RowParallelLinear(
            num_heads * self.head_dim, embed_dim, bias=bias, quant_config=quant_config, prefix=f"{prefix}.out_proj"
        )
        self.attn = Attention(
            self.num_heads,
            self.head_dim,
            scale=self.scaling,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )


class PrunedOPTForCausalLM(Pruned, opt.OPTForCausalLM):
    """A pruned OPT."""

    family = opt

    def prepare(self, config: Any, stack: ExitStack) -> None:
        """Lets layers hold an attention that does not take the width of a head from their number."""
        stack.enter_context(replaced(opt, "OPTAttention", OPTAttention))
