"""Which models llama.cpp can run pruned: it must have an architecture that has a size for every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ffprune_env.export.gguf.kinds import BLOCK, Kind, kind_of, require_quantizer
from ffprune_env.export.gguf.rope import FIXED
from ffprune_env.export.gguf.vocabulary import require_vocabulary
from ffprune_env.export.writable import dense_family
from ffprune_env.lm.tied import is_tied
from ffprune_env.modeling.absent import absent_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: What a family is written as. Of llama.cpp's architectures these two take heads, key/value heads and channels of every
#: layer, build their graphs from them, and have no experts or recurrent layers: deci is a Llama with optional biases,
#: openelm one with norms of queries and keys and a tied head.
ARCHITECTURES = {
    "llama": "deci", "mistral": "deci", "qwen2": "deci", "granite": "deci", "phi3": "deci", "qwen3": "openelm",
}  # fmt: skip
# What the others have that neither of the two computes.
_MISSING = {
    "opt": "learned positions and ReLU",
    "gemma": "GELU",
    "gemma2": "GELU and norms behind each part",
    "gemma3_text": "GELU and norms behind each part",
    "gemma3": "GELU and norms behind each part",
    "smollm3": "layers without rotation",
    "cohere": "attention beside the FFN",
    "cohere2": "attention beside the FFN",
    "olmo2": "norms behind each part",
}


def why_no_gguf(model: PreTrainedModel) -> str | None:
    """What is in the way of writing a model, pruned or still dense, as GGUF; None if nothing is."""
    family, config = dense_family(model), model.config
    if family not in ARCHITECTURES:
        why = f"llama.cpp has no architecture with sizes for every layer and {_MISSING.get(family, 'what it computes')}"
        return f"a {family} cannot be written as GGUF, {why}; families that can are {', '.join(ARCHITECTURES)}"
    rope = config.rope_parameters["rope_type"]
    if rope not in FIXED or config.hidden_act != "silu":
        return (
            f"rope type {rope!r} with {config.hidden_act!r} cannot be written as GGUF; allowed are "
            f"{', '.join(map(repr, FIXED))} with 'silu'"
        )
    layers = model.get_decoder().layers
    if all(len(absent_blocks(layer)) > 1 for layer in layers):
        return f"a {family} without any layer cannot be written as GGUF"
    attention = layers[0].self_attn
    if 2 * len(model.get_decoder().rotary_emb.inv_freq) != attention.head_dim:
        return f"a {family} that rotates a part of each head only cannot be written as GGUF"
    if ARCHITECTURES[family] == "openelm":
        return _why_no_openelm(model, family, rope)
    return None


def _why_no_openelm(model: PreTrainedModel, family: str, rope: str) -> str | None:
    found = {
        "a head of its own": not is_tied(model),
        "biases": any(name.endswith(".bias") for name, _ in model.named_parameters()),
        f"rope type {rope!r}": rope != "default",
    }
    for what, is_there in found.items():
        if is_there:
            return f"a {family} with {what} cannot be written as GGUF: llama.cpp's openelm, which it would be, has none"
    return None


def require_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuses, before a search, what could not be written as GGUF after it.

    Args:
        model: dense, or pruned before.
        tokenizer: its tokenizer.
        name: of the type, such as ``"q8_0"``.

    Raises:
        ValueError: the model, the tokenizer or the type cannot be written.
    """
    kind = kind_of(name)
    require_quantizer(kind)
    reason = why_no_gguf(model)
    if reason is not None:
        raise ValueError(f"{reason}: leave out --gguf")
    head_dim = model.get_decoder().layers[0].self_attn.head_dim
    require_rows(kind, {"hidden_size": model.config.hidden_size, "head_dim": head_dim})
    require_vocabulary(tokenizer, model.config.vocab_size)


def require_rows(kind: Kind, rows: dict[str, int]) -> None:
    """Raises ValueError if rows of these lengths, by what they are, cannot be stored.

    Those of FFNs are not among them: they are made longer by channels of zeros.
    """
    wrong = [f"{what} {length}" for what, length in rows.items() if length % BLOCK]
    if kind.strict and wrong:
        raise ValueError(f"{kind.name} stores {BLOCK} numbers at a time, which {wrong[0]} is no multiple of: take f16")
