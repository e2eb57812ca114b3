"""A pruned Llama or Mistral as a GGUF file for llama.cpp, whose `deci` architecture has a size for every layer."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gguf
import numpy.typing as npt
import torch

from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.replacing import replacing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

GgufType = Literal["f16", "q8_0"]
_TYPES: dict[str, Any] = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
_FILE_TYPES: dict[str, Any] = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
_FAMILIES = ("ffprune_llama", "ffprune_mistral")
_BLOCK = 32  # numbers that share a scale in q8_0; a row must hold whole blocks
# How llama.cpp calls the ways of splitting text before byte-level BPE, by a part of the regular expression.
_SPLITS = {"\\p{N}{1,3}": "llama-bpe", "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}": "tekken"}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GgufReport:
    """What was written.

    Attributes:
        size: bytes of the file.
        expanded_layers: layers in which key/value heads are repeated, because their query heads share them unevenly.
        expanded_params: parameters of the repetitions.
        cache_growth: size of the key/value cache as a fraction of that of the model it was written from, which also
            keeps heads that no query reads any more.
    """

    size: int
    expanded_layers: int
    expanded_params: int
    cache_growth: float


def export_gguf(folder: str | Path, out: str | Path, kind: GgufType = "f16") -> GgufReport:
    """Writes a pruned model as one GGUF file, with its tokenizer.

    Every key/value head of llama.cpp serves the same number of query heads. Where the query heads that are left share
    theirs unevenly, key and value heads are repeated until they do; heads that no query reads any more are left out.
    With ``q8_0`` the down projections stay f16.

    Args:
        folder: what :func:`~ffprune_env.export.folder.save_pruned` wrote, with a tokenizer.
        out: the file; appears under its name when all of it is written.
        kind: ``"f16"`` or ``"q8_0"``, of matrices; vectors are float32.

    Raises:
        ValueError: the model or the type cannot be written.
        OSError: the folder is incomplete, or the file cannot be written.
    """
    if kind not in _TYPES:
        raise ValueError(f"unknown type {kind!r}; allowed are {', '.join(_TYPES)}")
    source, target = Path(folder), Path(out)
    model = load_pruned(source, device="cpu")
    _require_writable(model)
    if not (source / "tokenizer.json").is_file():
        raise OSError(f"{source} holds no tokenizer.json; write the model with save_pruned(..., tokenizer=tokenizer)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as scratch:
        writer = gguf.GGUFWriter(scratch, "deci", use_temp_file=True)
        expansions = [_key_heads(layer.self_attn) for layer in model.model.layers]
        report = _report(model, expansions)
        _write_settings(writer, model, expansions, report, kind, source)
        _write_tokenizer(writer, source, model.config.vocab_size)
        for name, tensor in _tensors(model, expansions):
            _write_tensor(writer, name, tensor, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return GgufReport(target.stat().st_size, **report)


def _require_writable(model: PreTrainedModel) -> None:
    config = model.config
    if config.model_type not in _FAMILIES:
        raise ValueError(f"a {config.model_type} cannot be written as GGUF; allowed are {', '.join(_FAMILIES)}")
    rope = config.rope_parameters["rope_type"]
    if rope != "default" or config.hidden_act != "silu":
        raise ValueError(f"rope type {rope!r} with {config.hidden_act!r} cannot be written; allowed: 'default', 'silu'")


def _key_heads(attention: Any) -> list[int]:
    """Key/value heads of a layer to write, by their place in its projections."""
    if hasattr(attention, "kv_index"):
        return _expand_keys(attention.kv_index)
    return list(range(attention.k_proj.out_features // attention.head_dim))


def _expand_keys(kv_index: torch.Tensor) -> list[int]:
    """The fewest key/value heads, in order and with repetitions, that query heads in order share evenly.

    Args:
        kv_index: int64 [query heads], ascending: the key/value head that each reads.

    Returns:
        Key/value heads to write; with h query heads each of the n serves h / n in a row.
    """
    counts = Counter(kv_index.tolist())
    shared = gcd(*counts.values())
    return [head for head in sorted(counts) for _ in range(counts[head] // shared)]


def _report(model: PreTrainedModel, expansions: list[list[int]]) -> dict[str, Any]:
    config = model.config
    repeated = [len(heads) - len(set(heads)) for heads in expansions]
    per_head = (
        2 * config.head_dim * (config.hidden_size + int(config.model_type == _FAMILIES[0] and config.attention_bias))
    )
    before = sum(layer.self_attn.k_proj.out_features // config.head_dim for layer in model.model.layers)
    return {
        "expanded_layers": sum(heads > 0 for heads in repeated),
        "expanded_params": per_head * sum(repeated),
        "cache_growth": sum(len(heads) for heads in expansions) / before,
    }


def _write_settings(
    writer: gguf.GGUFWriter,
    model: PreTrainedModel,
    expansions: list[list[int]],
    report: dict[str, Any],
    kind: str,
    source: Path,
) -> None:
    config, heads = model.config, model.config.num_attention_heads_per_layer
    context = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    if window is not None and window < context:
        logger.warning("llama.cpp's deci has no sliding window: the context is written as %d, not %d", window, context)
        context = window
    writer.add_name(source.name)
    writer.add_description(
        f"pruned by ffprune; {report['expanded_layers']} layers repeat key/value heads: {report['expanded_params']} "
        f"parameters more, key/value cache {report['cache_growth']:.2f} times that of the model it was made from"
    )
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv([len(x) for x in expansions])
    writer.add_feed_forward_length(config.intermediate_size_per_layer)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: PreTrainedModel, expansions: list[list[int]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor under llama.cpp's name for it, in the order llama.cpp wants its rows."""
    head_dim = model.config.head_dim
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        module, _, suffix = name.rpartition(".")
        if suffix == "kv_index" or (module == "lm_head" and model.config.tie_word_embeddings):
            continue
        last = module.rpartition(".")[2]
        if last in ("k_proj", "v_proj"):
            heads = expansions[int(module.split(".")[2])]
            tensor = tensor.view(-1, head_dim, *tensor.shape[1:])[heads].flatten(0, 1)
        if last in ("q_proj", "k_proj"):
            tensor = _interleave_rotation(tensor, head_dim)
        yield f"{names.get_name(module)}.{suffix}", tensor


def _interleave_rotation(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Hugging Face rotates feature j with j + D/2 of a head, llama.cpp 2j with 2j + 1: rows move accordingly."""
    heads = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)


def _write_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, kind: str) -> None:
    values: Array = tensor.float().numpy()
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    # Beside q8_0 matrices llama.cpp rounds the inputs to 8 bits too, which those of the down projections bear badly.
    blocks = values.shape[1] % _BLOCK == 0 and "ffn_down" not in name
    written = _TYPES[kind] if blocks else _TYPES["f16"]
    writer.add_tensor(name, gguf.quants.quantize(values, written), raw_dtype=written)


def _write_tokenizer(writer: gguf.GGUFWriter, source: Path, vocab_size: int) -> None:
    settings = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    if settings["model"]["type"] != "BPE":
        raise ValueError(f"a {settings['model']['type']} tokenizer cannot be written as GGUF; allowed is BPE")
    added = {token["id"]: token for token in settings["added_tokens"]}
    words = {i: text for text, i in settings["model"]["vocab"].items()} | {i: x["content"] for i, x in added.items()}
    # The embedding may have more rows than the tokenizer has tokens.
    tokens = [words.get(i, f"<unused{i}>") for i in range(max(vocab_size, max(words) + 1))]
    like_sentencepiece = bool(settings["model"].get("byte_fallback"))
    writer.add_tokenizer_model("llama" if like_sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if like_sentencepiece else _split_name(settings["pre_tokenizer"]))
    if like_sentencepiece:
        writer.add_token_scores(_scores(tokens, settings["model"]["merges"]))
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(i, words, added, like_sentencepiece) for i in range(len(tokens))])
    special = gguf.SpecialVocab(source, load_merges=not like_sentencepiece, n_vocab=len(tokens))
    special.add_to_gguf(writer, quiet=True)


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """SentencePiece's scores: llama.cpp merges the pair whose result scores highest, so the earliest merge does."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), i)
    return [-float(rank.get(token, 0)) for token in tokens]


def _token_type(i: int, words: dict[int, str], added: dict[int, Any], like_sentencepiece: bool) -> gguf.TokenType:
    if i not in words:
        return gguf.TokenType.UNUSED
    if like_sentencepiece and re.fullmatch(r"<0x[0-9A-F]{2}>", words[i]):
        return gguf.TokenType.BYTE
    if i in added:
        return gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED
    return gguf.TokenType.NORMAL


def _split_name(pre_tokenizer: dict[str, Any] | None) -> str:
    """llama.cpp's name for the way a byte-level BPE tokenizer splits text before it merges."""
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    for step in steps:
        pattern = str(step.get("pattern", {}).get("Regex", ""))
        for part, name in _SPLITS.items():
            if part in pattern:
                return name
    kinds = [step["type"] for step in steps]
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    logger.warning("llama.cpp may split text unlike this tokenizer, whose steps are %s", ", ".join(kinds) or "none")
    return "default"
