"""Texts: disjoint parts, the window protocol, and clear refusals."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from conftest import byte_tokenizer
from transformers import AutoTokenizer

from ffprune_env.lm.models import _embedded_default
from ffprune_env.texts.cuts import pieces
from ffprune_env.texts.windows import _text, load_windows

PARTS = ("search", "calibration", "test")


@pytest.fixture(scope="module")
def default_tokenizer():
    return AutoTokenizer.from_pretrained(_embedded_default())


@pytest.mark.parametrize("name", ["python-docs", "file"])
def test_parts_share_no_text(name, text_file):
    name = str(text_file) if name == "file" else name
    lines = {}
    for part in PARTS:
        for line in _text(name, part).splitlines():
            if len(line) > 30:
                lines.setdefault(line, set()).add(part)
    shared = [line for line, parts in lines.items() if len(parts) > 1]
    # Single lines recur in documentation (signatures, table rules); paragraphs do not.
    assert len(shared) <= 0.02 * len(lines)
    paragraphs = [{re.sub(r"\s+", " ", p) for p in _text(name, part).split("\n\n") if len(p) > 80} for part in PARTS]
    for i, one in enumerate(paragraphs):
        assert one
        assert all(one.isdisjoint(other) for other in paragraphs[i + 1 :])


def test_parts_make_up_the_whole(text_file):
    assert "".join(_text(str(text_file), part) for part in PARTS) == text_file.read_text()


def test_windows_are_consecutive_tokens_without_the_tail(text_file, tokenizer):
    tokens = tokenizer(text_file.read_text())["input_ids"]
    windows = load_windows(str(text_file), tokenizer, "all", seq_len=100)
    assert windows.dtype == torch.int64
    assert windows.shape == (len(tokens) // 100, 100)
    assert windows.flatten().tolist() == tokens[: windows.numel()]


def test_a_few_windows_of_test_text_are_the_first_of_all(tokenizer):
    windows = load_windows("python-docs", tokenizer, "test", seq_len=64)
    assert torch.equal(load_windows("python-docs", tokenizer, "test", seq_len=64, n_windows=5), windows[:5])


@pytest.mark.parametrize("split", ["search", "all"])
@pytest.mark.parametrize("seq_len", [2, 16, 17, 64])
def test_windows_are_those_of_the_whole_text_where_its_first_tokens_are_long(tmp_path, split, seq_len):
    """Where only the beginning of a text is tokenized, its cut must not show: not in a token, not at an end mark."""
    tokenizer = byte_tokenizer()
    short, long = "abcdefghijklmnop", "abcdefghijklmnopqrstuvwxyzABCDEF"  # 16 and 32 characters
    tokenizer.add_tokens([short, long])
    path = tmp_path / "long.txt"
    path.write_text((short * (seq_len - 1) + long + "wxyz" * 100) * 12)
    whole = tokenizer(_text(str(path), split))["input_ids"]
    windows = load_windows(str(path), tokenizer, split, seq_len, 1)
    assert windows.flatten().tolist() == whole[:seq_len]


def test_windows_are_those_of_the_whole_text_with_a_real_vocabulary(default_tokenizer):
    for split, n_windows in (("test", 3), ("search", 4)):
        text = _text("python-docs", split)
        windows = load_windows("python-docs", default_tokenizer, split, 128, n_windows)
        parts = [text] if split == "test" else pieces(text, n_windows)
        wanted = [default_tokenizer(x)["input_ids"][: 128 * n_windows // len(parts)] for x in parts]
        assert windows.flatten().tolist() == list(itertools.chain.from_iterable(wanted))


def test_a_few_windows_of_search_text_are_spread_over_it(tokenizer):
    text = _text("python-docs", "search")
    windows = load_windows("python-docs", tokenizer, "search", seq_len=64, n_windows=5)
    places = [text.index(tokenizer.decode(window)) / len(text) for window in windows]
    assert places == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=0.001)


def test_windows_that_just_fit_do_not_overlap(tmp_path, tokenizer):
    path = tmp_path / "numbers.txt"
    path.write_text(" ".join(f"{i:07d}" for i in range(1000)))
    windows = load_windows(str(path), tokenizer, "search", seq_len=64, n_windows=28)
    words = [word for window in windows for word in tokenizer.decode(window).split() if len(word) == 7]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("wikitext", ValueError, r"unknown text 'wikitext'.*near names: wikitext2"),
        ("nothing-like-it", ValueError, r"near names: python-docs, wikitext2, c4"),
        ("absent.txt", OSError, r"absent\.txt: no such file"),
        ("wikitext2", OSError, r"text wikitext2.* comes from the Hugging Face hub.*use python-docs or a local"),
        ("c4", OSError, r"out of reach"),
    ],
)
def test_unknown_texts_are_refused(name, error, message, tokenizer):
    with pytest.raises(error, match=message):
        load_windows(name, tokenizer)


def test_a_text_too_short_says_how_much_there_is(text_file, tokenizer):
    with pytest.raises(ValueError, match=r"\(test part\) has \d+ windows of 128 tokens, 9999 were asked for"):
        load_windows(str(text_file), tokenizer, "test", 128, n_windows=9999)


def test_all_of_a_text_too_short_is_taken_where_fewer_windows_do(text_file, tokenizer):
    asked = {"name": str(text_file), "tokenizer": tokenizer, "split": "calibration", "seq_len": 128}
    everything = load_windows(**asked)
    assert torch.equal(load_windows(**asked, n_windows=9999, or_fewer=True), everything)
    assert torch.equal(load_windows(**asked, n_windows=2, or_fewer=True), load_windows(**asked, n_windows=2))
    with pytest.raises(ValueError, match="has 0 windows of 1000000 tokens"):
        load_windows(**asked | {"seq_len": 1_000_000}, n_windows=9999, or_fewer=True)


def test_arguments_out_of_range(tokenizer):
    with pytest.raises(ValueError, match="allowed are search, calibration, test, train, all"):
        load_windows("python-docs", tokenizer, split="middle")
    with pytest.raises(ValueError, match="seq_len ≥ 2"):
        load_windows("python-docs", tokenizer, seq_len=1)


def test_models_are_not_fitted_to_the_marks_of_unknown_words(tmp_path):
    """Parts are cut first, so they stay disjoint; what is tested on stays as it is."""
    lines = [f" the {i} th <unk> of many" for i in range(300)]
    path = tmp_path / "wiki.valid.tokens"
    path.write_text("\n".join(lines))
    parts = {part: _text(str(path), part) for part in (*PARTS, "all", "recovery")}
    assert not any("<unk>" in parts[part] for part in ("search", "calibration", "recovery"))
    assert parts["recovery"] == parts["all"].replace(" <unk>", "")
    assert parts["all"].count("<unk>") == 300
    assert "<unk>" in parts["test"]
    numbers = [set(re.findall(r"\d+", parts[part])) for part in PARTS]
    assert all(len(one & other) <= 1 for one, other in itertools.pairwise(numbers))
    raw = tmp_path / "wiki.raw"
    raw.write_text("\n".join(lines))
    assert "<unk>" in _text(str(raw), "search")
