"""Local files give the rows that their names promise, or one line that says why not."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import torch

from ffprune_env.texts.files import SUFFIXES, kind_of, read_rows
from ffprune_env.texts.windows import _text, load_windows

# What typed readers make something else of: dates, numbers, marks of missing values, line ends of the web.
ROWS = ["2020-01-01 10:00:00", "007", "NA", "null", "", 'two\nlines, and a "quote"', "one\u2028two", "東京。", "last"]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def records(rows):
    return [{"id": i, "text": row, "meta": None if i % 2 else {"n": [i, "x"]}} for i, row in enumerate(rows)]


def lines(rows, **options):
    return "\n".join(json.dumps(record, **options) for record in records(rows)) + "\n"


def table(folder, rows):
    path = folder / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "text"), *enumerate(rows)])
    return path.read_bytes()


@pytest.mark.parametrize(
    "name",
    ["a.json", "lines.json", "one.json", "a.jsonl", "a.JSONL", "a.Json", "a.csv", "a.CSV", "a.parquet", "a.jsonl.gz",
     "a.csv.gz", "A.JSON.GZ", "bom.jsonl", "bom.json", "bom.csv", "crlf.jsonl", "many.jsonl", "[1].json", "*.jsonl"],
)  # fmt: skip
def test_rows_are_read_as_what_the_file_is(name, tmp_path):
    rows = ROWS[-1:] if name == "one.json" else ROWS
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": rows, "id": list(range(len(rows)))}), tmp_path / name)
        assert read_rows(tmp_path / name) == rows
        return
    if "csv" in name.lower():
        content = table(tmp_path, rows)
    elif name == "one.json":
        content = json.dumps(records(rows)[0], indent=2).encode()
    elif name in ("a.json", "a.Json", "A.JSON.GZ", "bom.json", "[1].json"):
        content = json.dumps(records(rows), indent=1).encode()
    elif name == "many.jsonl":  # objects over several lines, and blank lines
        content = "\n\n".join(json.dumps(record, indent=1) for record in records(rows)).encode()
    else:
        content = lines(rows, ensure_ascii=False).encode()
    content = content.replace(b"\n", b"\r\n") if name == "crlf.jsonl" else content
    content = b"\xef\xbb\xbf" + content if name.startswith("bom") else content
    content = gzip.compress(content) if name.lower().endswith("gz") else content
    assert read_rows(write(tmp_path, name, content)) == rows


def test_rows_are_joined_by_a_blank_line(tmp_path, tokenizer):
    rows = [f"row {i} of the text" for i in range(40)]
    jsonl, txt = write(tmp_path, "rows.jsonl", lines(rows)), write(tmp_path, "rows.txt", "\n\n".join(rows))
    one, other = (load_windows(str(path), tokenizer, "all", seq_len=32) for path in (jsonl, txt))
    assert torch.equal(one, other)


def test_a_file_that_changes_in_place_gives_its_new_text(tmp_path):
    for name, content in (("a.json", lambda row: json.dumps([{"text": row}])), ("a.csv", "text\n{}\n".format)):
        for row in ("first", "other"):  # of the same length, within one tick of the clock
            assert read_rows(write(tmp_path, name, content(row))) == [row]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.md", "a.txt.gz"])
def test_plain_text_loses_its_mark_and_the_line_ends_of_windows(name, tmp_path):
    content = b"\xef\xbb\xbfone\r\ntwo\rthree\n\n\xe2\x80\xa8four \xef\xbb\xbf\r\n"
    path = write(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert read_rows(path) == ["one\ntwo\nthree\n\n\u2028four \ufeff"]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (" \n = Title = \n \n Some text . \n", ["", " = Title = \n", "", " Some text . \n"]),
        (" \r\n = Title = \r\n\r\n Some text . \r\n", ["", " = Title = \n", "", " Some text . \n"]),
        (" \r = Title = \r \r Some text . \r", ["", " = Title = \n", "", " Some text . \n"]),
        (" \n Some text . ", ["", " Some text . "]),  # as on the hub: the last line has no newline to keep
        ("\ufeff \n a \u2028 b \n", ["", " a \u2028 b \n"]),
    ],
)
@pytest.mark.parametrize("name", ["wiki.test.raw", "wiki.valid.tokens", "WIKI.RAW", "wiki.raw.gz"])
def test_wikitext_files_give_the_rows_of_the_hub(name, content, rows, tmp_path):
    data = content.encode()
    path = write(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
    assert read_rows(path) == rows
    assert _text(str(path), "all") == "\n\n".join(rows)


def test_real_wikitext_is_that_of_the_hub(shared_data, tmp_path):
    path = shared_data / "wikitext-2" / "wiki.test.raw"
    rows = read_rows(path)
    assert (len(rows), path.stat().st_size) == (4358, 1_290_590)
    assert rows[:3] == ["", " = Robert Boulter = \n", ""]
    assert sum(row == "" for row in rows) == 1467
    assert all(row == "" or (row.startswith(" ") and row.endswith(" \n")) for row in rows)
    text = _text(str(path), "all")
    assert text.lstrip().startswith("= Robert Boulter = \n\n\n\n\n Robert Boulter is an English film")
    assert len(text.split()) == 241_211  # words of the raw test split
    windows = write(tmp_path, "wiki.test.raw", path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_rows(windows) == rows
    assert len(read_rows(shared_data / "wikitext-2" / "wiki.valid.tokens")) == 3760


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}', r"row 2 has no field text; its fields are \['body'\]"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}', r"row 2 is None, a string is needed"),
        ("a.json", '[{"text": "a"}, {"text": 5}]', r"row 2 is 5, a string is needed"),
        ("a.json", '[{"text": "a"}, "b"]', r"row 2 is 'b', an object with a field text is needed"),
        ("a.json", '{"data": [{"text": "a"}]}', r"row 1 has no field text; its fields are \['data'\]"),
        ("a.json", '[{"text": "a"}] x', r"something follows the array"),
        ("a.json", '[{"text": "a"},', r"Expecting value: line 1"),
        ("a.json", "[" * 100_000, r"nested too deeply"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b', r"Unterminated string starting at: line 2"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\\ud800"}', r"row 2 holds '\\ud800', half of a surrogate pair"),
        ("a.csv", "id,body\n1,b\n", r"no column text; its first line names \['id', 'body'\]"),
        ("a.csv", "id;text\n1;b\n", r"no column text"),
        ("a.csv", "id,text\n1,a\n2\n", r"row 2 is None, a string is needed"),
        ("a.csv", "id,text\n1,a\n2,b, lost\n", r"row 2 has 1 more fields than the first line: quote what holds a"),
        ("a.csv", "text\nHello, world\n", r"row 1 has 1 more fields"),
        ("a.csv", "text,text\na,lost\n", r"it has two columns text; its first line names \['text', 'text'\]"),
        ("a.csv", 'id, text\n1, "a, b"\n', r"it has no column text; its first line names \['id', ' text'\]"),
        ("a.jsonl", '{"text": ["a", "b"]}\n', r"row 1 is \['a', 'b'\], a string is needed"),
        ("a.jsonl", '{"text": "a"},\n{"text": "b"}\n', r"Expecting value: line 1 column 14"),
        ("a.jsonl", '[{"text": "a"}]\n[{"text": "b"}]\n', r"something follows the array"),
        ("a.txt", "日本語".encode("iso2022_jp"), r"byte 0 begins a text in ISO-2022: save it in UTF-8"),
        ("a.csv", "text\n한국어".encode("iso2022_kr"), r"byte 5 begins a text in ISO-2022"),
        ("a.txt", "text".encode("utf-32"), r"is in UTF-16 or UTF-32: save it in UTF-8"),
        ("a.txt", gzip.compress(b"words", mtime=0), r"byte \d is (NUL|0x8b)"),
        ("a.csv", 'id,text\n1,"a"b\n', r"expected after"),
        ("a.parquet", b"PAR1 no table", r"a\.parquet is not read as \.parquet: "),
        ("a.txt", b"caf\xe9 ", r"byte 3 is 0xe9, which is not UTF-8"),
        ("a.txt", b"\xef\xbb\xbfcaf\xe9 ", r"byte 6 is 0xe9, which is not UTF-8"),
        ("a.txt", "text".encode("utf-16"), r"is in UTF-16 or UTF-32: save it in UTF-8"),
        ("a.csv", "text\na".encode("utf-16-be"), r"byte 0 is NUL, so it is binary or in UTF-16"),
        ("a.raw", b" words \0\0\0", r"byte 7 is NUL"),
        ("a.txt", "", r"it is empty"),
        ("a.txt", "\ufeff", r"it is empty"),
        ("a.jsonl", "", r"it is empty"),
        ("a.json", "[]", r"it is empty"),
        ("a.csv", "", r"it is empty"),
        ("a.csv", "id,text\n", r"it is empty"),
        ("a.txt", " \n\n \u3000", r"nothing but white space"),
        ("a.raw", " \n \n", r"nothing but white space"),
        ("a.txt.gz", b"no gzip", r"not read as \.txt packed by gzip: "),
        ("a.txt.gz", gzip.compress(b"words", mtime=0)[:-3], r"not read as \.txt packed by gzip: "),
        ("README", "words", r"of a kind that is not read; allowed are \.txt, \.md, .*: rename or convert it"),
        ("a.rst", "words", r"of a kind that is not read"),
        ("a.gz", "words", r"of a kind that is not read"),
        ("a.parquet.gz", "words", r"of a kind that is not read"),
        ("a.txt.bak", "words", r"of a kind that is not read"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_claims_gets_one_line(name, content, message, tmp_path, tokenizer):
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_windows(str(path), tokenizer)
    assert str(caught.value).startswith(f"text {path} is ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", [["fine", None], [1, 2], [b"fine", b"bytes"]])
def test_a_column_of_parquet_holds_strings(column, tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(ValueError, match=r"row \d is (None|1|b'fine'), a string is needed"):
        read_rows(path)
    pyarrow.parquet.write_table(pyarrow.table({"body": column}), path)
    with pytest.raises(ValueError, match=r"no column text; its columns are \['body'\]"):
        read_rows(path)


@pytest.mark.parametrize("kind", ["dictionary", "large_string"])
def test_strings_of_parquet_are_read_however_they_are_stored(kind, tmp_path):
    column = pyarrow.array(["one", "two", "one"])
    stored = column.dictionary_encode() if kind == "dictionary" else column.cast(pyarrow.large_string())
    pyarrow.parquet.write_table(pyarrow.table({"text": stored, "text.old": stored}), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == ["one", "two", "one"]


@pytest.mark.parametrize(
    ("names", "column", "says"),
    [
        (["text", "text"], ["a"], r"it has two columns text; its columns are \['text', 'text'\]"),
        (["text", "id"], [["a", "b"]], r"row 1 is \['a', 'b'\], a string is needed"),
        (["text", "id"], [{"en": "a"}], r"row 1 is {'en': 'a'}, a string is needed"),
    ],
)
def test_a_column_of_parquet_is_one_and_flat(names, column, says, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(column)] * 2, names=names), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=says):
        read_rows(tmp_path / "a.parquet")


def test_a_table_that_windows_has_saved_is_the_same_text(tmp_path):
    content = b'\xef\xbb\xbf"id","text"\n1,"two\nlines, ""quoted"""\n2,last\n'
    for ends in (b"\n", b"\r\n", b"\r"):
        assert read_rows(write(tmp_path, "a.csv", content.replace(b"\n", ends))) == ['two\nlines, "quoted"', "last"]


@pytest.mark.parametrize("name", ["a.txt", "a.raw"])
def test_no_other_character_ends_a_line(name, tmp_path):
    line = "a\x85b\u2028c\x0cd\x1ce\u2029f \n"
    assert "".join(read_rows(write(tmp_path, name, line * 2))) == (line * 2 if name == "a.raw" else (line * 2)[:-1])


def test_what_is_no_file(tmp_path, tokenizer):
    for folder in (tmp_path, tmp_path / "folder.jsonl"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(OSError, match=r" is a folder, a file is needed: \.txt, "):
            load_windows(str(folder), tokenizer)
    with pytest.raises(OSError, match=r"absent\.txt: no such file"):
        load_windows(str(tmp_path / "absent.txt"), tokenizer)
    with pytest.raises(OSError, match=r"absent\.JSONL: no such file"):
        load_windows(str(tmp_path / "absent.JSONL"), tokenizer)


def test_kinds_are_known_by_name_alone(tmp_path):
    assert [kind_of(tmp_path / f"x{suffix.upper()}") for suffix in SUFFIXES] == list(SUFFIXES)
    assert [kind_of(tmp_path / name) for name in ("txt", ".gz", "x.txt.tar", "x.")] == [None] * 4
