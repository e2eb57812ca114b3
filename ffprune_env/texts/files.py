"""A local file to the rows of its text, read as what its name says it is; anything else is refused in one line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import reprlib
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PLAIN = (".txt", ".md")
_WIKITEXT = (".raw", ".tokens")
_RECORDS = (".json", ".jsonl", ".csv")
_PARQUET = ".parquet"
#: Names of files that are read; capitals are as good, and all but the last may be packed by gzip.
SUFFIXES = (*_PLAIN, *_WIKITEXT, *_RECORDS, _PARQUET)

_JSON_SPACE = re.compile(r"[ \t\r\n]*")
# How Japanese, Korean and Chinese mail and old web pages change over to two bytes per character.
_ISO_2022 = re.compile(rb"\x1b\$[@AB()]")


def kind_of(path: Path) -> str | None:
    """What a file is by its name: one of :data:`SUFFIXES`, of ``x.jsonl.gz`` what it holds; None if it is not read."""
    suffix, packed = path.suffix.lower(), False
    if suffix == ".gz":
        suffix, packed = Path(path.stem).suffix.lower(), True
    return suffix if suffix in SUFFIXES and not (packed and suffix == _PARQUET) else None


def read_rows(path: Path) -> list[str]:
    """Rows of a local file, to be joined by a blank line.

    Args:
        path: .txt or .md, which is one row; WikiText .raw or .tokens, a row per line; .json (an array of objects, or
            one object after the other), .jsonl, .csv or .parquet, of which the field or column ``text`` is read.

    Returns:
        Strings that UTF-8 can hold; at least one is not blank.

    Raises:
        ValueError: the file is not what its name says, a row is no text, or there is none.
        OSError: the file is missing or unreadable.
    """
    if path.is_dir():
        raise OSError(f"text {path} is a folder, a file is needed: {', '.join(SUFFIXES)}")
    if not path.exists():
        raise OSError(f"text {path}: no such file")
    kind = kind_of(path)
    if kind is None:
        packed = ", ".join(SUFFIXES[:-1])
        raise ValueError(
            f"text {path} is of a kind that is not read; allowed are {', '.join(SUFFIXES)}, and with .gz behind it "
            f"{packed}: rename or convert it"
        )
    if not path.is_file():
        raise OSError(f"text {path} is no regular file: copy it to one")
    try:
        rows = _rows(path, kind)
        if not any(row.strip() for row in rows):
            raise ValueError("it is empty" if not rows else "it holds nothing but white space")
    except (ValueError, EOFError, RecursionError, zlib.error, csv.Error, gzip.BadGzipFile) as error:
        packed = " packed by gzip" if path.suffix.lower() == ".gz" else ""
        raise ValueError(f"text {path} is not read as {kind}{packed}: {' '.join(str(error).split())}") from error
    return rows


def read_records(path: Path) -> list[Any]:
    """Whatever a .json or .jsonl file holds, one value after the other.

    Args:
        path: the file.

    Raises:
        ValueError: it is not what its name says.
        OSError: it is missing or unreadable.
    """
    try:
        return _json_values(_decoded(path))
    except (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not read as JSON: {' '.join(str(error).split())}") from error


def _rows(path: Path, kind: str) -> list[str]:
    if kind == _PARQUET:
        return _checked(_parquet_column(path))
    text = _decoded(path)
    if kind == ".csv":
        return _checked(_csv_column(text))
    if kind in _RECORDS:
        return _checked(_json_field(text))
    lines = io.StringIO(text, newline=None)  # "\r\n" and "\r" end a line as "\n" does, and nothing else does
    if kind in _WIKITEXT:
        # The hub's rows of WikiText: a line with its newline, or nothing for a blank line.
        return [line if line.strip() else "" for line in lines]
    whole = lines.read().removesuffix("\n")
    return [whole] if whole else []


def _decoded(path: Path) -> str:
    """The characters of a file in UTF-8, without the mark that some editors put before them."""
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        data = gzip.decompress(data)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is in UTF-16 or UTF-32: save it in UTF-8")
    if escape := _ISO_2022.search(data):  # bytes below 128 that are no letters, and so would pass for UTF-8
        raise ValueError(f"byte {escape.start()} begins a text in ISO-2022: save it in UTF-8")
    if b"\0" in data:
        raise ValueError(f"byte {data.index(0)} is NUL, so it is binary or in UTF-16: text in UTF-8 is needed")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Python counts from the end of the mark.
        place = error.start + len(data) - len(error.object)
        raise ValueError(f"byte {place} is {data[place]:#04x}, which is not UTF-8: save it in UTF-8") from error


def _json_field(text: str) -> list[object]:
    # Not by datasets or pandas: they make dates and numbers of strings that look like them.
    try:
        return [_field(value, i) for i, value in enumerate(_json_values(text), start=1)]
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _json_values(text: str) -> list[Any]:
    """The items of an array, or values one after the other, on lines of their own or over several."""
    decoder = json.JSONDecoder()
    place = _after_space(text, 0)
    if text.startswith("[", place):
        items, place = decoder.raw_decode(text, place)
        if _after_space(text, place) < len(text):
            raise ValueError(f"something follows the array, at character {place}")
        return list(items)
    values = []
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        values.append(value)
        place = _after_space(text, place)
    return values


def _after_space(text: str, place: int) -> int:
    found = _JSON_SPACE.match(text, place)
    return place if found is None else found.end()


def _field(value: object, row: int) -> object:
    if not isinstance(value, dict):
        raise ValueError(f"row {row} is {reprlib.repr(value)}, an object with a field text is needed")
    if "text" not in value:
        raise ValueError(f"row {row} has no field text; its fields are {reprlib.repr(list(value))}")
    return value["text"]


def _csv_column(text: str) -> list[object]:
    before = csv.field_size_limit(sys.maxsize)  # a field may be a whole book
    try:
        # Line ends inside quotes are those of the file: what Windows has saved is the same text.
        rows = csv.DictReader(io.StringIO(text, newline=None), strict=True)
        names = list(rows.fieldnames or ())
        if names and names.count("text") != 1:
            found = "two columns" if "text" in names else "no column"
            raise ValueError(f"it has {found} text; its first line names {reprlib.repr(names)}")
        return [_csv_field(row, i) for i, row in enumerate(rows, start=1)]
    finally:
        csv.field_size_limit(before)


def _csv_field(row: dict[str | None, Any], number: int) -> object:
    if None in row:  # a comma of the text itself, most likely: what follows it would be lost
        raise ValueError(f"row {number} has {len(row[None])} more fields than the first line: quote what holds a comma")
    return row["text"]


def _parquet_column(path: Path) -> list[object]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if names.count("text") != 1:
                found = "two columns" if "text" in names else "no column"
                raise ValueError(f"it has {found} text; its columns are {reprlib.repr(names)}")
            return list(file.read(columns=["text"])["text"].to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _checked(rows: Sequence[object]) -> list[str]:
    """Rows that are strings which UTF-8 can hold; ValueError, which names the row counted from 1, for others."""
    texts = []
    for i, row in enumerate(rows, start=1):
        if not isinstance(row, str):
            raise ValueError(f"row {i} is {reprlib.repr(row)}, a string is needed")
        try:
            row.encode("utf-8")
        except UnicodeEncodeError as error:
            half = ascii(row[error.start])
            raise ValueError(f"row {i} holds {half}, half of a surrogate pair, which is no character") from error
        texts.append(row)
    return texts
