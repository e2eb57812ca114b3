"""The tokenizer in a GGUF file: tokens, merges, the way text is split, special tokens and the chat template."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
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
_SHOWN = 3  # names in a message


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raises ValueError for a tokenizer that cannot be written.

    Args:
        tokenizer: the tokenizer.
        vocab_size: rows of the embedding.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"a {type(tokenizer).__name__} cannot be written as GGUF: it has no tokenizer.json")
    described = backend.to_str()
    settings = json.loads(described)
    _require_bpe(settings)
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    needed = roles.union(_encoded(Tokenizer.from_str(described)))
    _without_row(settings, vocab_size, needed, str(tokenizer.chat_template))


def require_chat_template(source: Path, what: str) -> None:
    """Raises ValueError for a folder whose tokenizer has no chat template; one without a tokenizer is let pass.

    Args:
        source: the folder.
        what: needs the template.
    """
    if (source / "tokenizer.json").is_file() and not gguf.SpecialVocab(source).chat_template:
        raise ValueError(
            f"{what} needs a chat template, and the tokenizer in {source} has none: leave out {what}, or give "
            f"tokenizer.chat_template a value and save the tokenizer there"
        )


def _require_bpe(settings: dict[str, Any]) -> None:
    if settings["model"]["type"] != "BPE":
        raise ValueError(f"a {settings['model']['type']} tokenizer cannot be written as GGUF; allowed is BPE")


def write_vocabulary(writer: gguf.GGUFWriter, source: Path, vocab_size: int, family: str) -> None:
    """Adds the tokenizer of a folder to a file, and the name of the model, by which llama.cpp knows some of them.

    Llama.cpp opens no file with more tokens than the embedding has rows. Added tokens without a row, which the model
    could not read either, are left out, and a warning says which.

    Args:
        writer: of the file.
        source: the folder, with tokenizer.json.
        vocab_size: rows of the embedding; it may have more than the tokenizer has tokens.
        family: of the model.

    Raises:
        ValueError: the tokenizer is none that llama.cpp has, or the embedding has no row for a token that is needed.
        OSError: there is no tokenizer.
    """
    file = source / "tokenizer.json"
    if not file.is_file():
        raise OSError(f"{source} holds no tokenizer.json; write the model with save_pruned(..., tokenizer=tokenizer)")
    settings = json.loads(file.read_text(encoding="utf-8"))
    _require_bpe(settings)
    like_sentencepiece = bool(settings["model"].get("byte_fallback"))
    special, around = gguf.SpecialVocab(source, not like_sentencepiece), _encoded(Tokenizer.from_file(str(file)))
    ids = special.special_token_ids
    needed = {ids.get(role) for role in ("bos", "eos", "unk")}.union(around)
    left_out = _without_row(settings, vocab_size, needed, str(special.chat_template))
    if left_out:
        names = ", ".join([*left_out[:_SHOWN], *(["…"] if len(left_out) > _SHOWN else [])])
        logger.warning("the embedding has no row for added tokens, which are not written: %s", names)
    added, words = _added(settings), _words(settings)
    tokens = [words.get(i, f"<unused{i}>") for i in range(vocab_size)]
    writer.add_name("pruned phi" if family == "phi3" and not set(tokens) >= _OF_PHI3 else f"pruned {family}")
    writer.add_tokenizer_model("llama" if like_sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if like_sentencepiece else _split_name(settings["pre_tokenizer"]))
    if like_sentencepiece:
        writer.add_token_scores(_scores(tokens, settings["model"]["merges"]))
        writer.add_add_space_prefix("▁" in _prepended(settings))
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(i, words, added, like_sentencepiece) for i in range(len(tokens))])
    special.special_token_ids = {role: i for role, i in ids.items() if i < vocab_size}
    # Whether the tokenizer puts a token in front of text and behind it, which llama.cpp else guesses.
    first, last = (around[0], around[-1]) if around else (-1, -1)
    special.add_special_token = {"bos": first == ids.get("bos"), "eos": last == ids.get("eos")}
    special.add_to_gguf(writer, quiet=True)


def _encoded(tokenizer: Tokenizer) -> list[int]:
    """The tokens of a short text, with those that the tokenizer puts around it."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found: list[int] = tokenizer.encode("a").ids
    return found


def _without_row(settings: dict[str, Any], vocab_size: int, needed: Collection[int | None], template: str) -> list[str]:
    """The added tokens that the embedding has no row for, none of which is used.

    Args:
        settings: of the tokenizer.
        vocab_size: rows of the embedding.
        needed: tokens that are used in any case.
        template: for chats, which uses those that it names.

    Raises:
        ValueError: one of them is used, or is no added token, so that text may have it.
    """
    added, unknown = _added(settings), settings["model"].get("unk_token")
    beyond = {i: text for i, text in sorted(_words(settings).items()) if i >= vocab_size}
    for i, text in beyond.items():
        if i not in added or i in needed or text == unknown or text in template:
            raise ValueError(
                f"token {i} of the tokenizer, {text!r}, has no row in the embedding, which has {vocab_size}, and so "
                f"cannot be written as GGUF: give the embedding a row for each token, by "
                f"model.resize_token_embeddings({max(beyond) + 1}), or take the token out of the tokenizer"
            )
    return list(beyond.values())


def _added(settings: dict[str, Any]) -> dict[int, Any]:
    """The tokens that were added to the vocabulary, by their number."""
    return {token["id"]: token for token in settings["added_tokens"]}


def _words(settings: dict[str, Any]) -> dict[int, str]:
    """The text of every token, by its number."""
    words = {i: text for text, i in settings["model"]["vocab"].items()}
    return words | {i: token["content"] for i, token in _added(settings).items()}


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
