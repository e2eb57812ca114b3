"""Windows that nobody has seen: none of their tokens is in what a run looks at."""

from __future__ import annotations

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from ffprune_env.texts.overlap import share_in, unseen
from ffprune_env.texts.unseen_windows import load_unseen_windows
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.window_settings import WindowSettings
from ffprune_env.texts.windows import load_test_windows, load_windows

MODEL, TOKENIZER = tiny_model("llama"), byte_tokenizer()
SETTINGS = WindowSettings(64, search_windows=2, final_windows=2, curve_windows=2, pool_windows=4)


def seen_on(text, n_test):
    texts = load_planned_windows(MODEL, TOKENIZER, text, SETTINGS).texts
    return {**texts, "test": load_test_windows(text, None, TOKENIZER, 128, n_test, model=MODEL)}


@pytest.mark.parametrize(("n_test", "wanted", "n"), [(2, 8, 8), (None, 8, 8), (None, 400, 160), (2, 20, 20)])
def test_no_token_was_seen_before(text_file, n_test, wanted, n):
    """Where all of the test part is reported on, they come from what is left of the search part, as far as it goes."""
    seen = seen_on(str(text_file), n_test)
    found = load_unseen_windows(MODEL, TOKENIZER, str(text_file), seen, wanted)
    assert found.shape[1] == 64
    assert n * 0.75 < len(found) <= n
    for windows in seen.values():
        assert share_in(found, windows) == share_in(windows, found) == 0
    assert len(torch.unique(found, dim=0)) == len(found)


def test_of_a_long_test_part_they_follow_what_is_reported(text_file):
    seen = seen_on(str(text_file), 2)
    found = load_unseen_windows(MODEL, TOKENIZER, str(text_file), seen, 8)
    test_part = load_windows(str(text_file), TOKENIZER, "test", 64, model=MODEL)
    assert all((window == test_part[4:]).all(dim=1).any() for window in found)


def test_a_text_without_four_of_them_is_refused(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("".join(f"{i} is {i * i}, " for i in range(160)))
    seen = {**seen_on(str(text), 1), "test": load_windows(str(text), TOKENIZER, "test", 64, model=MODEL)}
    seen["search"] = torch.cat([seen["search"], load_windows(str(text), TOKENIZER, "search", 64, model=MODEL)])
    with pytest.raises(ValueError, match=r"has \d windows of 64 tokens that neither .* sees, 4 are the fewest"):
        load_unseen_windows(MODEL, TOKENIZER, str(text), seen, 8)


def test_a_window_was_seen_wherever_it_was_cut():
    text = torch.arange(1000)
    windows = text[:960].view(10, 96)
    assert unseen(windows, text[330:370][None]).tolist() == [True] * 3 + [False] + [True] * 6
    assert unseen(windows, text[300:331][None]).all()  # 31 tokens in a row are no run
    with pytest.raises(ValueError, match="windows of 16 tokens are too short"):
        unseen(text[:960].view(60, 16), windows)


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory):
    """Some 30 kB of words, no line of which repeats, with `<unk>` among them as WikiText's tokenized variant has it."""
    path = tmp_path_factory.mktemp("text") / "words.tokens"
    lines = [f" line {i} says {i * i} <unk> and {i + 7} <unk> not {i * i * i}" for i in range(700)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("n_test", [2, 40, None])
def test_a_limit_is_checked_on_the_kind_of_text_that_was_fitted(tokens_file, n_test):
    """No `<unk>` is in it, and nothing of the text that is reported on, which keeps them."""
    seen = seen_on(str(tokens_file), n_test)
    assert "<unk>" in TOKENIZER.decode(seen["test"].flatten())
    assert "<unk>" not in TOKENIZER.decode(torch.cat([seen[x].flatten() for x in ("search", "calibration")]))
    found = load_unseen_windows(MODEL, TOKENIZER, str(tokens_file), seen, 8)
    assert len(found) == 8
    assert "<unk>" not in TOKENIZER.decode(found.flatten())
    reported = TOKENIZER.decode(seen["test"].flatten()).replace(" <unk>", "")
    bare = torch.tensor(TOKENIZER(reported)["input_ids"])[None]
    for windows in (bare, *seen.values()):
        assert share_in(found, windows) == share_in(windows, found) == 0


def test_what_another_text_is_tested_on_costs_no_window(tokens_file, text_file):
    seen = seen_on(str(tokens_file), 2)
    seen["test"] = load_windows(str(text_file), TOKENIZER, "all", 128, 40, model=MODEL)
    found = load_unseen_windows(MODEL, TOKENIZER, str(tokens_file), seen, 400)
    limit_part = load_windows(str(tokens_file), TOKENIZER, "limit", 64, model=MODEL)
    assert torch.equal(found[: len(limit_part)], limit_part)


@pytest.mark.parametrize("suffix", [".tokens", ".raw", ".txt"])
def test_the_limit_part_is_the_test_part_without_unknown_words(tokens_file, tmp_path, suffix):
    path = tmp_path / f"words{suffix}"
    path.write_bytes(tokens_file.read_bytes())
    test, limit = (load_windows(str(path), TOKENIZER, split, 64) for split in ("test", "limit"))
    bare = TOKENIZER.decode(test.flatten()).replace(" <unk>", "") if suffix == ".tokens" else None
    if bare is None:
        assert torch.equal(test, limit)
    else:
        assert bare.startswith(TOKENIZER.decode(limit.flatten())[: len(bare) - 64])
