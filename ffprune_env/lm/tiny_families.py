"""A tiny model of any causal family of transformers, random, to try on it what is to work with the family."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

# Sizes by the names that configurations give them; the first pattern that fits counts.
_COUNTS = (
    (r"(.*_)?vocab_size(_.*)?|encoder_hash_byte_group_vocab", 256),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_(source|target)_positions|model_max_length", 128),
    (r"original_max_position_embeddings|context_length", 128),
    (r"(.*_)?(num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|depth)", 4),
    (r"num_layers_per_stack|num_blocks|num_global_layers", 2),
    (r"(.*_)?num_(key_value_heads|kv_heads|key_heads|query_groups)", 2),
    (r"(.*_)?(num_)?(attention_heads|n_heads?|num_heads|value_heads)|n_head", 4),
    (r"(.*_)?(n_routed_experts|num_local_experts|num_experts|moe_num_experts|n_experts|zero_expert_num)", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|num_experts_per_.*", 2),
    (r"n_group|topk_group|num_expert_group|mamba_n_groups|n_groups", 1),
    (r"sliding_window(_size)?|attention_window_size|local_attention|.*chunk_size|.*chunk_length|block_size", 16),
    (r"image_size|crop_size", 28),
    (r"patch_size", 14),
)
# Sizes of vectors, which may be asked for larger.
_WIDTHS = (
    (r".*intermediate_size(_.*)?|.*ffn_dim|.*ffn_hidden_size|dim_ff|dff|d_ff|d_inner|feed_forward_size|mlp_dim", 64),
    (r"qk_head_dim", 16),  # the part with positions, and the part without
    (r"(.*_)?(head_dim|headdim|head_size|d_head|dim_head|kv_channels|d_kv|attention_head_dim|rotary_dim)", 8),
    (r"hidden_size_per_layer_input|.*_rank|hc_lowrank|.*state_size|mamba_d_state|index_topk|d_rel|ple_embed_dim", 8),
    (r"(.*_)?(hidden_size|d_model|n_embd|embedding_dim|emb_dim|embed_dim|embedding_size)(_global)?", 32),
    (r"lru_width|word_embed_proj_dim|mamba_d_ssm|.*hidden_dim|out_hidden_size|query_pre_attn_scalar", 32),
)
#: Tokens that there are.
VOCABULARY = 256
# Tokens with a meaning of their own get the last place in the vocabulary, which no text here uses.
_SPECIAL = re.compile(r".*(token_id|token_index|mask_index)")
_HEADS, _MOST_LAYERS = 4, 4
_MOST_PARAMETERS = 20_000_000
# Of the noise that is added to weights as they are initialized.
_NOISE = 0.1
# Sizes that depend on each other in ways of one family.
_LAYERS = ["sliding_attention", "full_attention"] * 2
_OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "gemma3n_text": {
        "layer_types": _LAYERS,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [64] * 4,
    },
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"num_heads": 2},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
}


def tiny_of_family(family: str, scale: int = 1, **settings: Any) -> PreTrainedModel:
    """A tiny random model of a family, whose weights and biases are all different.

    Its default configuration is taken, with all sizes small.

    Args:
        family: a model type of transformers that has a causal language model.
        scale: heads of 8 and hidden states of 32 numbers, and all other vectors, are so many times as long.
        **settings: more of its configuration.

    Raises:
        Exception: whatever transformers raises where none can be made; ValueError where one is not tiny.
    """
    default = CONFIG_MAPPING[family]()
    problems = []
    for changes in ({}, {"lists": True}, {"shared_keys": False}):
        try:
            config = CONFIG_MAPPING[family](
                **{**_small(default, scale, **changes), **_OVERRIDES.get(family, {}), **settings}
            )
            with torch.device("meta"):
                shapes = AutoModelForCausalLM.from_config(config)
            size = sum(parameter.numel() for parameter in shapes.parameters())
            if size > _MOST_PARAMETERS:
                raise ValueError(f"{size / 1e6:.0f} million parameters are left when its sizes are small")
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=_NOISE)
                own_perplexity(model, torch.arange(3, 15)[None])
        except Exception as error:  # any error at all, and another way is tried
            problems.append(error)
        else:
            return model
    raise problems[0]


def _small(config: PretrainedConfig, scale: int, lists: bool = False, shared_keys: bool = True) -> dict[str, Any]:
    """The settings of a configuration that are too large, made small.

    Args:
        config: the default configuration of a family.
        scale: of vectors.
        lists: cut lists of one value per layer, too, which most configurations make themselves.
        shared_keys: fewer key/value heads than query heads, where there is a number of them.
    """
    sizes = (*_COUNTS, *((pattern, scale * size) for pattern, size in _WIDTHS))
    settings: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            settings[name] = _small(value, scale, lists, shared_keys)
        elif isinstance(value, bool) or name.startswith("_"):
            continue
        elif isinstance(value, int):
            size = next((size for pattern, size in sizes if re.fullmatch(pattern, name)), value)
            if name in ("num_key_value_heads", "num_kv_heads") and not shared_keys:
                size = _HEADS
            if _SPECIAL.fullmatch(name):
                size = VOCABULARY - 1
            if size < value:
                settings[name] = size
        elif isinstance(value, list) and lists and len(value) > _MOST_LAYERS:
            settings[name] = value[:_MOST_LAYERS]
    # Encoders that were made to be decoders, too.
    if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        settings["is_decoder"] = True
    return settings


def byte_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte; every merge takes the place of one of the last of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet[: len(alphabet) - len(merges)], *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@torch.no_grad()
def own_perplexity(model: PreTrainedModel, windows: torch.Tensor) -> float:
    """Perplexity by the book: from the model's own logits, window by window, in float64."""
    # A cache is an output of no use here, and some families cannot make one of all their kinds of layers.
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    losses = []
    for window in windows:
        logits = model(input_ids=window[None], **options).logits[0].double()
        losses.append(F.cross_entropy(logits[:-1], window[1:]))
    return float(torch.stack(losses).mean().exp())
