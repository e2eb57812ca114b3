"""The tokenizer in a GGUF file: tokens, merges, the way text is split, special tokens and the chat template."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# How llama.cpp calls the ways of splitting text before byte-level BPE, by a part of the regular expression.
_SPLITS = {
    "\\p{N}{1,3}": "llama-bpe",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}": "tekken",
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|": "qwen2",
}
# llama.cpp takes a model that is called phi3 for one with these tokens, drops blanks behind them, and cannot open it
# where it has none.
_OF_PHI3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def require_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError for a tokenizer that cannot be written."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"a {type(tokenizer).__name__} cannot be written as GGUF: it has no tokenizer.json")
    _require_bpe(json.loads(backend.to_str()))


def _require_bpe(settings: dict[str, Any]) -> None:
    if settings["model"]["type"] != "BPE":
        raise ValueError(f"a {settings['model']['type']} tokenizer cannot be written as GGUF; allowed is BPE")


def write_vocabulary(writer: gguf.GGUFWriter, source: Path, vocab_size: int, family: str) -> None:
    """Adds the tokenizer of a folder to a file, and the name of the model, by which llama.cpp knows some of them.

    Args:
        writer: of the file.
        source: the folder, with tokenizer.json.
        vocab_size: rows of the embedding; it may have more than the tokenizer has tokens.
        family: of the model.

    Raises:
        ValueError: the tokenizer is none that llama.cpp has.
        OSError: there is no tokenizer.
    """
    file = source / "tokenizer.json"
    if not file.is_file():
        raise OSError(f"{source} holds no tokenizer.json; write the model with save_pruned(..., tokenizer=tokenizer)")
    settings = json.loads(file.read_text(encoding="utf-8"))
    _require_bpe(settings)
    added = {token["id"]: token for token in settings["added_tokens"]}
    words = {i: text for text, i in settings["model"]["vocab"].items()} | {i: x["content"] for i, x in added.items()}
    tokens = [words.get(i, f"<unused{i}>") for i in range(max(vocab_size, max(words) + 1))]
    writer.add_name("pruned phi" if family == "phi3" and not set(tokens) >= _OF_PHI3 else f"pruned {family}")
    like_sentencepiece = bool(settings["model"].get("byte_fallback"))
    writer.add_tokenizer_model("llama" if like_sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if like_sentencepiece else _split_name(settings["pre_tokenizer"]))
    if like_sentencepiece:
        writer.add_token_scores(_scores(tokens, settings["model"]["merges"]))
        writer.add_add_space_prefix("▁" in _prepended(settings))
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(i, words, added, like_sentencepiece) for i in range(len(tokens))])
    special = gguf.SpecialVocab(source, load_merges=not like_sentencepiece, n_vocab=len(tokens))
    special.add_special_token = _added_around(Tokenizer.from_file(str(file)), special.special_token_ids)
    special.add_to_gguf(writer, quiet=True)


def _added_around(tokenizer: Tokenizer, special: dict[str, int]) -> dict[str, bool]:
    """Whether the tokenizer puts a token in front of text and behind it, which llama.cpp else guesses."""
    ids = tokenizer.encode("a").ids or [-1]
    return {"bos": ids[0] == special.get("bos"), "eos": ids[-1] == special.get("eos")}


def _prepended(settings: dict[str, Any]) -> str:
    """What is put before a text that is like SentencePiece's."""
    normalizer, splitter = settings.get("normalizer") or {}, settings.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *splitter.get("pretokenizers", [splitter])]
    found = [str(step.get("prepend", "")) for step in steps]
    found += ["▁" for step in steps if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never"]
    return "".join(found)


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
