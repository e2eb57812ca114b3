"""A name to windows of tokens; search, calibration and test text never overlap."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ffprune_env.lm.hub import is_offline, require_hub
from ffprune_env.lm.models import context_length
from ffprune_env.lm.phases import Advance, phase, windows_size
from ffprune_env.texts.bos import Bos, bos_protocol
from ffprune_env.texts.cuts import part, pieces
from ffprune_env.texts.files import SUFFIXES, kind_of, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Split = Literal["search", "calibration", "test", "train", "all", "limit", "recovery"]

DEFAULT_TEXT = "python-docs"
#: Texts that have a name, with where they come from.
NAMED_TEXTS = (DEFAULT_TEXT, "wikitext2", "c4")

# Where one text serves all three purposes it is cut at these fractions of its characters. A search measures on few
# windows many times; the ridge fit gets better with every window it sees.
_CUTS: dict[Split, tuple[float, float]] = {
    "search": (0.0, 0.25), "calibration": (0.25, 0.7), "test": (0.7, 1.0), "train": (0.25, 1.0), "all": (0.0, 1.0),
    "limit": (0.7, 1.0), "recovery": (0.0, 1.0),
}  # fmt: skip
# Hub data sets have a test split of their own, so the rest is shared by search and calibration.
_TRAIN_CUTS: dict[Split, tuple[float, float]] = {
    "search": (0.0, 0.5), "calibration": (0.5, 1.0), "train": (0.5, 1.0), "all": (0.0, 1.0)
}  # fmt: skip
# Of these a few windows are taken at equal distances; of the others, from the beginning.
_SPREAD = ("search", "calibration", "train")
# What models are fitted to, and what a limit is checked on, which is text of the same kind.
_FITTED = (*_SPREAD, "limit", "recovery")
_SEPARATOR = "\n\n"
# What WikiText's tokenized variant has in place of rare words. No other text has it: models must not be fitted to it.
_UNKNOWN = " <unk>"
_SOON_READ = 2**25  # bytes of a file that is read before a model is loaded
_C4_ROWS = 20_000  # rows of the shard that are looked at: some 9 million tokens
# Of a text of which only the first windows are wanted, so many characters per token are tokenized at first. How a
# text goes on changes the tokens before its cut, but never so many: where fewer are over, all of it is tokenized.
_CHARS_PER_TOKEN = 16
_MARGIN = 64


def load_windows(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    split: Split = "test",
    seq_len: int = 2048,
    n_windows: int | None = None,
    *,
    or_fewer: bool = False,
    model: PreTrainedModel | None = None,
    bos: Bos = "auto",
) -> torch.Tensor:
    """Cuts a text into non-overlapping windows of tokens.

    Test text is tokenized in one call and cut from its beginning; the tail is dropped (protocol P2048). A few windows
    of search or calibration text are taken at equal distances instead, so that they see as much of it as they can.

    Args:
        name: ``python-docs``, ``wikitext2``, ``c4``, or a path to a .txt or .md file, a .json, .jsonl, .csv or .parquet
            file with a field or column ``text``, or a WikiText .raw or .tokens file, of the latter of which all
            but test text loses the ``<unk>``; all but .parquet may be packed, such as ``x.jsonl.gz``.
        tokenizer: the model's; special tokens are what it adds, but where windows begin with its BOS token: then they
            hold no others, and all that is predicted is text.
        split: ``search``, ``calibration`` and ``test`` never share text; ``train`` is the two of them that are not
            ``search``, for who tests on another text; ``all`` is the whole of a file that is tested on, ``recovery``
            of one that is trained on: without ``<unk>``; ``limit`` is ``test`` without ``<unk>``.
        seq_len: tokens per window, at least 2.
        n_windows: how many windows; None takes all, from the beginning.
        or_fewer: take all windows of a text that has fewer than asked for, instead of refusing it.
        model: what the windows are for; they are no longer than its context, which is logged where it matters.
        bos: whether every window begins with the BOS token, with seq_len - 1 tokens of text behind it; ``auto`` is
            where ``model`` needs it, see :func:`~ffprune_env.texts.bos.bos_protocol`.

    Returns:
        int64 [n, seq_len], or of fewer columns if the model takes no more.

    Raises:
        ValueError: unknown name or split, or a text too short for the windows asked for.
        OSError: a file is missing or unreadable, or the hub is needed and out of reach.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; allowed are {', '.join(get_args(Split))}")
    if seq_len < 2 or (n_windows is not None and n_windows < 1):
        raise ValueError(f"windows need seq_len ≥ 2 and n_windows ≥ 1, got seq_len={seq_len}, n_windows={n_windows}")
    if model is not None:
        seq_len = _within_context(seq_len, model)
    first = tokenizer.bos_token_id if bos_protocol(bos, model, tokenizer) == "always" else None
    asked = "all windows" if n_windows is None else windows_size((n_windows, seq_len))
    steps = n_windows or 0 if split in _SPREAD else 0
    with phase("reading text", f"{asked} of the {split} part of {Path(name).name}", steps) as advance:
        encode, length = _Encoder(tokenizer, first is None), seq_len - (first is not None)
        windows = _windows(_text(name, split), encode, split, length, n_windows, advance)
    if len(windows) < (n_windows if n_windows is not None and not or_fewer else 1):
        raise ValueError(
            f"text {name} ({split} part) has {len(windows)} windows of {seq_len} tokens, {n_windows or 1} were asked "
            f"for: ask for fewer or shorter windows, or give a longer text"
        )
    windows = windows[:n_windows]
    return windows if first is None else torch.cat([torch.full_like(windows[:, :1], first), windows], dim=1)


@dataclass(frozen=True)
class _Encoder:
    """A text to tokens, with the special tokens that the tokenizer adds, or without."""

    tokenizer: PreTrainedTokenizerBase
    special: bool

    def __call__(self, text: str) -> torch.Tensor:
        encoded = self.tokenizer(text, verbose=False, **({} if self.special else {"add_special_tokens": False}))
        return torch.tensor(encoded["input_ids"], dtype=torch.int64)


def _windows(
    text: str,
    encode: _Encoder,
    split: Split,
    seq_len: int,
    n_windows: int | None,
    advance: Advance,
) -> torch.Tensor:
    """As many windows as were asked for or, of a text that has fewer, all."""
    if n_windows is not None:  # millions of tokens need not be made for a handful of windows
        if split in _SPREAD:
            found = []
            for piece in pieces(text, n_windows):
                found.append(_first(piece, encode, seq_len, 1))
                encode = replace(encode, special=False)  # a text begins once, wherever windows of it are taken from
                advance()
            windows = torch.cat(found)
        else:
            windows = _first(text, encode, seq_len, n_windows)
        if len(windows) == n_windows:
            return windows
    return _cut(text, encode, seq_len)


def load_test_windows(
    text: str,
    test_text: str | None,
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    n_windows: int | None,
    *,
    model: PreTrainedModel | None = None,
    bos: Bos = "auto",
) -> torch.Tensor:
    """Test text of a search on ``text``: another text, or the part of the same one that the search never sees.

    Args:
        text: what is searched and calibrated on.
        test_text: what to test on; None or the same file stands for the test part of ``text``.
        tokenizer: as for :func:`load_windows`, like the arguments after it, its errors and what it returns.
        seq_len: tokens per window.
        n_windows: how many windows; None takes all.
        model: what the windows are for.
        bos: whether they begin with the BOS token.
    """
    named, split = text if test_text is None else test_text, split_tested(text, test_text)
    return load_windows(named, tokenizer, split, seq_len, n_windows, model=model, bos=bos)


def split_tested(text: str, test_text: str | None) -> Split:
    """The part of a test text that a search on ``text`` is tested on: all of a file that it does not see otherwise."""
    return "test" if same_text(text, test_text) or test_text in NAMED_TEXTS else "all"


def same_text(text: str, other: str | None) -> bool:
    """Whether a second text is the first one, by its name or because there is none."""
    return other is None or Path(other).resolve() == Path(text).resolve()


def _within_context(seq_len: int, model: PreTrainedModel) -> int:
    context = context_length(model)
    if seq_len > context:
        logger.warning("the model takes %d tokens: windows have as many, not %d", context, seq_len)
    return min(seq_len, context)


def _first(text: str, encode: _Encoder, seq_len: int, n_windows: int) -> torch.Tensor:
    """The first windows of a text, or all if it has fewer, exactly as if all of it were tokenized."""
    head = text[: n_windows * seq_len * _CHARS_PER_TOKEN]
    if len(head) < len(text):
        tokens = encode(head)
        if len(tokens) >= n_windows * seq_len + _MARGIN:
            return tokens[: n_windows * seq_len].view(n_windows, seq_len)
    return _cut(text, encode, seq_len)[:n_windows]


def _cut(text: str, encode: _Encoder, seq_len: int) -> torch.Tensor:
    tokens = encode(text)
    n = len(tokens) // seq_len
    return tokens[: n * seq_len].view(n, seq_len)


def require_text(name: str) -> None:
    """Refuses a text that is not there, or cannot be read, before a model is loaded for it.

    Args:
        name: see :func:`load_windows`.

    Raises:
        ValueError: an unknown name, or a file that is not what its name says, or empty. A file that takes longer to
            read than a model to load is looked at when it is needed.
        OSError: there is no such file, or it is none.
    """
    if name in NAMED_TEXTS:
        return
    path = _path_of(name)
    if not path.is_file() or kind_of(path) is None or path.stat().st_size < _SOON_READ:
        read_rows(path)  # says what is wrong with it


def _path_of(name: str) -> Path:
    path = Path(name)
    if kind_of(path) is None and not path.exists():
        near = difflib.get_close_matches(name, NAMED_TEXTS, n=3) or NAMED_TEXTS
        kinds = ", ".join(SUFFIXES)
        raise ValueError(
            f"unknown text {name!r}: neither a known name nor a {kinds} file; near names: {', '.join(near)}"
        )
    return path


def _text(name: str, split: Split) -> str:
    if name == DEFAULT_TEXT:
        return part(_SEPARATOR.join(_python_docs()), _CUTS[split])
    if name in NAMED_TEXTS:
        if split in ("test", "limit"):
            return _SEPARATOR.join(_hub_rows(name, test=True))
        return part(_SEPARATOR.join(_hub_rows(name, test=False)), _TRAIN_CUTS[split])
    path = _path_of(name)
    cut = part(_SEPARATOR.join(read_rows(path)), _CUTS[split])
    return cut.replace(_UNKNOWN, "") if has_unknown(name) and split in _FITTED else cut


def has_unknown(name: str) -> bool:
    """Whether a text has ``<unk>`` in the place of rare words, which stays in text that is reported on alone.

    Args:
        name: see :func:`load_windows`.
    """
    return name not in NAMED_TEXTS and kind_of(Path(name)) == ".tokens"


def _python_docs() -> Iterator[str]:
    """The paragraphs of CPython's language reference, each once: topics repeat each other's sections."""
    from pydoc_data.topics import topics

    seen = set()
    for paragraph in chain.from_iterable(topics[key].split(_SEPARATOR) for key in sorted(topics)):
        words = " ".join(paragraph.split())
        if words and words not in seen:
            seen.add(words)
            yield paragraph


def _hub_rows(name: str, test: bool) -> Iterable[str]:
    from datasets import load_dataset

    choices = f"{DEFAULT_TEXT} or a local {', '.join(SUFFIXES)} file"
    if not is_offline():
        require_hub(f"text {name}", choices)
    try:
        if name == "wikitext2":
            rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test" if test else "train")
        else:
            shard = "en/c4-validation.00000-of-00008.json.gz" if test else "en/c4-train.00000-of-01024.json.gz"
            rows = islice(
                load_dataset("allenai/c4", data_files={"rows": shard}, split="rows", streaming=True), _C4_ROWS
            )
        return [row["text"] for row in rows]
    except (OSError, ValueError):
        require_hub(f"text {name}, which is not in the local cache,", choices)
        raise
