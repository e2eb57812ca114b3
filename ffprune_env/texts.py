"""A name to windows of tokens; search, calibration and test text never overlap."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ffprune_env.hub import is_offline, require_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = Literal["search", "calibration", "test", "all"]

DEFAULT_TEXT = "python-docs"
#: Texts that have a name, with where they come from.
NAMED_TEXTS = (DEFAULT_TEXT, "wikitext2", "c4")
_SUFFIXES = (".txt", ".raw", ".tokens", ".jsonl", ".parquet")

# Where one text serves all three purposes it is cut at these fractions of its characters. A search measures on few
# windows many times; the ridge fit gets better with every window it sees.
_CUTS: dict[Split, tuple[float, float]] = {
    "search": (0.0, 0.25), "calibration": (0.25, 0.7), "test": (0.7, 1.0), "all": (0.0, 1.0)
}  # fmt: skip
# Hub data sets have a test split of their own, so the rest is shared by search and calibration.
_TRAIN_CUTS: dict[Split, tuple[float, float]] = {"search": (0.0, 0.5), "calibration": (0.5, 1.0), "all": (0.0, 1.0)}
_SEPARATOR = "\n\n"
# What WikiText's tokenized variant has in place of rare words. No other text has it: models must not be fitted to it.
_UNKNOWN = " <unk>"
_C4_ROWS = 20_000  # rows of the shard that are looked at: some 9 million tokens
# No tokenizer in use here needs more characters per token than this over a whole window.
_CHARS_PER_TOKEN = 16


def load_windows(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    split: Split = "test",
    seq_len: int = 2048,
    n_windows: int | None = None,
    *,
    or_fewer: bool = False,
) -> torch.Tensor:
    """Cuts a text into non-overlapping windows of tokens.

    Test text is tokenized in one call and cut from its beginning; the tail is dropped (protocol P2048). A few windows
    of search or calibration text are taken at equal distances instead, so that they see as much of it as they can.

    Args:
        name: ``python-docs``, ``wikitext2``, ``c4``, or a path to a .txt, .jsonl (field ``text``), .parquet (column
            ``text``), or WikiText .raw or .tokens file; search and calibration text lose the ``<unk>`` of the latter.
        tokenizer: the model's; special tokens are what it adds.
        split: ``search``, ``calibration`` and ``test`` never share text; ``all`` is the whole of a file.
        seq_len: tokens per window, at least 2.
        n_windows: how many windows; None takes all, from the beginning.
        or_fewer: take all windows of a text that has fewer than asked for, instead of refusing it.

    Returns:
        int64 [n, seq_len].

    Raises:
        ValueError: unknown name or split, or a text too short for the windows asked for.
        OSError: a file is missing or unreadable, or the hub is needed and out of reach.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; allowed are {', '.join(get_args(Split))}")
    if seq_len < 2 or (n_windows is not None and n_windows < 1):
        raise ValueError(f"windows need seq_len ≥ 2 and n_windows ≥ 1, got seq_len={seq_len}, n_windows={n_windows}")
    text = _text(name, split)
    if n_windows is not None:  # millions of tokens need not be made for a handful of windows
        pieces, each = ([text], n_windows) if split in ("test", "all") else (_pieces(text, n_windows), 1)
        heads = [piece[: each * seq_len * _CHARS_PER_TOKEN] for piece in pieces]
        windows = torch.cat([_cut(head, tokenizer, seq_len)[:each] for head in heads])
        if len(windows) == n_windows:
            return windows
    windows = _cut(text, tokenizer, seq_len)
    if len(windows) < (n_windows if n_windows is not None and not or_fewer else 1):
        raise ValueError(
            f"text {name} ({split} part) has {len(windows)} windows of {seq_len} tokens, {n_windows or 1} were asked "
            f"for: ask for fewer or shorter windows, or give a longer text"
        )
    return windows[:n_windows]


def load_test_windows(
    text: str, test_text: str | None, tokenizer: PreTrainedTokenizerBase, seq_len: int, n_windows: int | None
) -> torch.Tensor:
    """Test text of a search on ``text``: another text, or the part of the same one that the search never sees.

    Args:
        text: what is searched and calibrated on.
        test_text: what to test on; None or the same file stands for the test part of ``text``.
        tokenizer: as for :func:`load_windows`, like the arguments after it, its errors and what it returns.
        seq_len: tokens per window.
        n_windows: how many windows; None takes all.
    """
    if test_text is None or Path(test_text).resolve() == Path(text).resolve():
        return load_windows(text, tokenizer, "test", seq_len, n_windows)
    return load_windows(test_text, tokenizer, "test" if test_text in NAMED_TEXTS else "all", seq_len, n_windows)


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> torch.Tensor:
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    n = len(tokens) // seq_len
    return tokens[: n * seq_len].view(n, seq_len)


def _text(name: str, split: Split) -> str:
    if name == DEFAULT_TEXT:
        return _part(_python_docs(), _CUTS[split])
    if name in NAMED_TEXTS:
        if split == "test":
            return _SEPARATOR.join(_hub_rows(name, test=True))
        return _part(_hub_rows(name, test=False), _TRAIN_CUTS[split])
    path = Path(name)
    if path.suffix in _SUFFIXES or path.exists():
        part = _part(_file_rows(path), _CUTS[split])
        return part.replace(_UNKNOWN, "") if path.suffix == ".tokens" and split in ("search", "calibration") else part
    near = difflib.get_close_matches(name, NAMED_TEXTS, n=3) or NAMED_TEXTS
    kinds = ", ".join(_SUFFIXES)
    raise ValueError(f"unknown text {name!r}: neither a known name nor a {kinds} file; near names: {', '.join(near)}")


def _part(rows: Iterable[str], cut: tuple[float, float]) -> str:
    """Joins rows by a blank line and takes a range of fractions of the characters, moved to whole words."""
    text = _SEPARATOR.join(rows)
    return text[_word_boundary(text, cut[0]) : _word_boundary(text, cut[1])]


def _pieces(text: str, n: int) -> list[str]:
    """Cuts a text into n pieces of nearly equal length, between words."""
    places = [_word_boundary(text, i / n) for i in range(n + 1)]
    return [text[start:end] for start, end in pairwise(places)]


def _word_boundary(text: str, fraction: float) -> int:
    place = int(fraction * len(text))
    while 0 < place < len(text) and not text[place].isspace():
        place += 1
    return place


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

    choices = f"{DEFAULT_TEXT} or a local {', '.join(_SUFFIXES)} file"
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


def _file_rows(path: Path) -> list[str]:
    """Rows of a local file, to be joined by a blank line."""
    if not path.is_file():
        raise OSError(f"text {path}: no such file")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return _checked(pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist())
        # Lines end at "\n" alone: str.splitlines would also break them at characters that texts of the web hold.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if path.suffix == ".jsonl":
            return _checked([json.loads(line)["text"] for line in lines if line.strip()])
    except (KeyError, TypeError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = " ".join(str(error).split())
        raise ValueError(f"text {path} is not a {path.suffix} file with a text field: {reason}") from error
    if path.suffix in (".raw", ".tokens"):
        # The hub's rows of WikiText: a line with its newline, or nothing for a blank line.
        return [f"{line}\n" if line.strip() else "" for line in lines]
    return ["\n".join(lines)]


def _checked(rows: list[object]) -> list[str]:
    for i, row in enumerate(rows):
        if not isinstance(row, str):
            raise ValueError(f"row {i} is {row!r}, a string is needed")
    return [row for row in rows if isinstance(row, str)]
