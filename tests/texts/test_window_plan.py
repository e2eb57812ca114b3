"""The plan of windows: no token of text serves two purposes, whatever the text and the settings."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import byte_tokenizer, load_script, tiny_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ffprune_env.texts.plan_rows import plan_rows, ranges
from ffprune_env.texts.window_plan import Shares, load_planned_windows, share_out
from ffprune_env.texts.window_settings import WindowSettings
from ffprune_env.texts.windows import _text, load_test_windows

MODEL = tiny_model("llama")
numbers = st.integers(1, 40)


@given(st.integers(0, 120), numbers, st.integers(0, 40), st.integers(0, 40))
@example(22, 2, 8, 16)  # python-docs by default
@example(60, 2, 8, 16)
@example(4, 2, 8, 16)
@example(3, 2, 8, 16)
def test_windows_are_shared_out_and_none_twice(there, samples, final_samples, curve_windows):
    least = samples + min(final_samples, 1) + min(curve_windows, 1)
    if there < least:
        with pytest.raises(ValueError, match=f"^{samples} were asked for"):
            share_out(there, samples, final_samples, curve_windows)
        return
    shares = share_out(there, samples, final_samples, curve_windows)
    everyone = [*shares.search, *shares.finalists, *shares.curves]
    assert len(set(everyone)) == len(everyone)
    assert set(everyone) <= set(range(there))
    assert len(shares.search) == samples
    assert min(1, final_samples) <= len(shares.finalists) <= final_samples
    assert min(1, curve_windows) <= len(shares.curves) <= curve_windows
    assert len(everyone) == min(there, samples + final_samples + curve_windows)
    for share in (shares.search, shares.finalists, shares.curves):  # spread over the whole: no stretch without one
        edges = [-1, *sorted(share), there]
        assert not share or max(b - a for a, b in pairwise(edges)) <= 2 * there / len(share) + samples + final_samples


def test_a_short_text_costs_the_curves_first():
    assert [len(x) for x in vars(share_out(22, 2, 8, 16)).values()] == [2, 8, 12, 0, 0]
    assert [len(x) for x in vars(share_out(18, 2, 8, 16)).values()] == [2, 8, 8, 0, 0]
    assert [len(x) for x in vars(share_out(12, 2, 8, 16)).values()] == [2, 5, 5, 0, 0]
    assert [len(x) for x in vars(share_out(12, 2, 8)).values()] == [2, 8, 0, 0, 0]
    assert share_out(4, 4).search == (0, 2, 1, 3)  # every prefix is spread over the text


@given(st.integers(0, 150), numbers, st.integers(0, 20), st.integers(0, 20), st.integers(0, 80), st.integers(0, 6))
@example(60, 2, 8, 16, 64, 4)
def test_a_pool_takes_what_is_left_and_nothing_of_others(there, samples, finals, curves, pool, watch):
    pool = max(pool, samples)
    if there < 2 * samples + watch + min(finals, 1) + min(curves, 1):
        with pytest.raises(ValueError, match=f"{samples + watch} more to draw from and to watch the search on"):
            share_out(there, samples, finals, curves, pool, watch)
        return
    shares = share_out(there, samples, finals, curves, pool, watch)
    everyone = [i for share in vars(shares).values() for i in share]
    assert len(set(everyone)) == len(everyone) == min(there, samples + finals + curves + pool + watch)
    assert set(everyone) <= set(range(there))
    assert (len(shares.search), len(shares.watch)) == (samples, watch)
    assert samples <= len(shares.pool) <= pool
    if len(shares.pool) > samples:  # it is the first to have less
        assert (len(shares.finalists), len(shares.curves)) == (finals, curves)


@given(st.integers(0, 150), numbers, st.integers(0, 20), st.integers(0, 20), st.integers(0, 80), st.integers(0, 6))
@example(26, 2, 8, 0, 64, 4)  # python-docs from `ffn-only`
@example(18, 8, 8, 0, 0, 4)
def test_who_gives_way_takes_nothing_but_what_the_pool_can_spare(there, samples, finals, curves, pool, watch):
    pool = max(pool, samples) if pool else 0
    try:
        without = share_out(there, samples, finals, curves, pool)
    except ValueError as error:
        with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
            share_out(there, samples, finals, curves, pool, watch, watch_gives_way=True)
        return
    shares = share_out(there, samples, finals, curves, pool, watch, watch_gives_way=True)
    assert (shares.search, shares.finalists, shares.curves) == (without.search, without.finalists, without.curves)
    assert len(without.pool) - len(shares.pool) <= max(0, len(without.pool) - samples) / 4
    everyone = [i for share in vars(shares).values() for i in share]
    assert len(set(everyone)) == len(everyone)
    unused = there - sum(map(len, vars(without).values()))
    assert min(watch, unused) <= len(shares.watch) <= watch


def test_who_draws_no_windows_anew_has_the_plan_of_before():
    """Bit for bit: figures of before are figures of now."""
    finalists, curves = (1, 12, 6, 17, 4, 15, 9, 20), (0, 2, 3, 7, 8, 10, 11, 13, 14, 18, 19, 21)
    assert share_out(22, 2, 8, 16) == Shares((5, 16), finalists, curves)
    asked = WindowSettings(128, calibration_windows=4, fresh_windows=False)
    assert asked.windows_wanted == {"search": 2, "finalists": 8, "curves": 16, "pool": 0, "watch": 0}
    more = replace(asked, fresh_windows=True, patience=3)
    assert more.windows_wanted == {"search": 2, "finalists": 8, "curves": 16, "pool": 64, "watch": 4}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A text in which no ten characters come twice."""
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    path.write_text(" ".join(f"{i:05}" for i in range(4000)))
    return path


@settings(max_examples=40)
@given(
    seq_len=st.sampled_from([16, 50, 64, 128, 500]),
    search_windows=st.integers(1, 6),
    final_windows=st.integers(0, 12),
    curve_windows=st.integers(0, 20),
    calibration_windows=st.integers(1, 60),
    fresh_windows=st.booleans(),
    pool_windows=st.integers(6, 30),
    patience=st.one_of(st.none(), st.just(3)),
    eval_every=st.sampled_from([0, 2, None]),
    test_windows=st.one_of(st.none(), st.integers(1, 12)),
)
def test_no_token_of_text_has_two_purposes(counted, seq_len, test_windows, **asked):
    """Places in the text, of which a window is a stretch: one byte is one token here."""
    whole, tokenizer, text = counted.read_text(), byte_tokenizer(), str(counted)
    try:
        planned = load_planned_windows(MODEL, tokenizer, text, WindowSettings(seq_len, **asked))
    except ValueError as error:
        assert "ask for fewer or shorter windows, or give a longer text" in str(error)  # noqa: PT017
        return
    test = load_test_windows(text, None, tokenizer, min(seq_len, 128), test_windows or 1)
    windows = torch.cat([x[:, : min(seq_len, 128)] for x in planned.texts.values()] + [test])
    places = sorted(whole.index(tokenizer.decode(window)) for window in windows)
    assert all(b - a >= windows.shape[1] for a, b in pairwise(places))


@pytest.mark.parametrize("seq_len", [32, 128])
@pytest.mark.parametrize("text", ["python-docs", "wiki.valid.tokens"])
def test_no_window_of_a_real_text_has_two_purposes(text, seq_len, request, tokenizer):
    if text != "python-docs":
        text = str(request.getfixturevalue("shared_data") / "wikitext-2" / text)
    texts = load_planned_windows(MODEL, tokenizer, text, WindowSettings(seq_len)).texts
    texts["test"] = load_test_windows(text, None, tokenizer, seq_len, 8)
    rows = [tuple(row) for windows in texts.values() for row in windows.tolist()]
    assert [len(x) for x in texts.values()] == [2, 8, 16, 64, 96, 8]
    assert len(set(rows)) == len(rows)
    for key, part in (("search", "search"), ("finalists", "search"), ("curves", "search"), ("test", "test")):
        assert all(tokenizer.decode(row) in _text(text, part) for row in texts[key])


def test_what_a_text_is_too_short_for_is_said(counted, tokenizer, caplog):
    asked = WindowSettings(128, calibration_windows=4, fresh_windows=False)
    planned = load_planned_windows(MODEL, tokenizer, str(counted), asked)
    assert not caplog.records
    assert {key: len(x) for key, x in planned.texts.items()} == {
        "search": 2, "finalists": 8, "curves": 16, "calibration": 4
    }  # fmt: skip
    long = tiny_model("llama")
    long.config.max_position_embeddings = 500
    load_planned_windows(long, tokenizer, str(counted), replace(asked, seq_len=500))
    said = "(search part) has 11 windows of 500 tokens, 26 were asked for: damage curves get 5 of 16, finalists 4 of 8"
    assert f"text {counted} {said}" in caplog.text
    refused = (
        f"text {counted} (search part) has 11 windows of 500 tokens, 10 were asked for to search on, and 2 more are "
        "needed for finalists and damage curves: ask for fewer or shorter windows, or give a longer text"
    )
    with pytest.raises(ValueError, match=re.escape(refused)):
        load_planned_windows(long, tokenizer, str(counted), replace(asked, seq_len=500, search_windows=10))


def test_the_table_holds_every_purpose(counted, tokenizer):
    asked = WindowSettings(100, final_windows=4, curve_windows=6, calibration_windows=5, fresh_windows=False)
    planned = load_planned_windows(MODEL, tokenizer, str(counted), asked)
    rows = plan_rows(planned, load_test_windows(str(counted), None, tokenizer, 128, 3), "some text")
    assert [(row.purpose, row.windows, row.tokens) for row in rows] == [
        ("ranking", 5, 500), ("calibration", 5, 500), ("curves", 6, 600), ("search", 2, 200), ("finalists", 4, 400),
        ("test", 3, 384),
    ]  # fmt: skip
    assert [row.which.split(" of ")[1] for row in rows] == ["5", "5", "12", "12", "12", "3"]
    assert rows[-1].text == "some text"
    assert ranges((7, 0, 1, 2, 5, 8)) == "0-2, 5, 7-8"


def test_the_script_prints_the_plan(tiny_folder, text_file, monkeypatch, capsys):
    script = load_script("evaluate/windows.py")
    monkeypatch.setattr(script.console, "width", 300)  # another test may have loaded it before

    def run(**flags):
        words = [str(x) for name, value in flags.items() for x in (f"--{name.replace('_', '-')}", value)]
        monkeypatch.setattr(sys, "argv", ["windows.py", "--model", str(tiny_folder), *words])
        code = script.main()
        return code, capsys.readouterr()

    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    every = {"ranking", "calibration", "curves", "search", "pool", "watch", "finalists", "limit", "test"}
    for words, needless in (
        ({"evaluations": 96}, set()),
        ({"init": "ffn-only"}, {"curves"}),
        ({"init": "ffn-only", "evaluations": 0}, {"curves", "pool", "watch"}),
        ({}, {"pool", "watch"}),  # it takes its start as it is
    ):
        code, said = run(text=text_file, seq_len=64, test_seq_len=128, curve_windows=7, **words)
        assert code == 0
        lines = {line.split("│")[1].strip(): line for line in said.out.splitlines() if line.count("│") == 7}
        assert set(lines) - {""} == every - needless
    assert f"{text_file}, search part" in lines["finalists"]
    assert f"{text_file}, test part" in lines["test"]
    assert "│       7 │    448 │" in lines["curves"]
    for flags, message in (
        ({"text": text_file, "seq_len": 64, "search-windows": 9999}, "9999 were asked for to search on"),
        ({"text": text_file, "final_windows": 0}, "--final-windows must be at least 1, got 0"),
        ({"text": "nowhere.txt"}, "no such file"),
    ):
        code, said = run(**flags)
        assert code == 2
        (line,) = said.err.splitlines()
        assert message in line
