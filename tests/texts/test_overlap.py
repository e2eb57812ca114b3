"""A test text that is the search text under another name is refused."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import load_script
from tiny_runs import run_main, settings

from ffprune_env.comparison import measuring
from ffprune_env.texts.overlap import require_unseen, share_in


def words(start: int, n: int, length: int = 64) -> torch.Tensor:
    """Windows of a text in which no token comes twice."""
    return torch.arange(start, start + n * length).view(n, length)


def test_the_share_is_that_of_the_runs_at_whatever_place():
    text = words(0, 4)
    moved = text.flatten()[5 : 5 + 3 * 64].view(3, 64)
    assert share_in(text, text) == 1.0
    assert share_in(words(1000, 4), text) == 0.0
    assert share_in(torch.cat([text[:1], words(1000, 3)]), text) == 0.25
    assert share_in(moved, words(1000, 2), text.view(1, -1)) == 1.0
    assert share_in(text.flip(1), text) == 0.0  # the same tokens in another order


def test_windows_shorter_than_a_run_say_nothing():
    assert share_in(words(0, 4, 16), words(0, 4, 16)) == 0.0


def test_seen_text_is_refused_with_its_share():
    require_unseen(words(0, 4), words(1000, 4))
    with pytest.raises(ValueError, match="50% of the test text is also search or calibration text, at most 1%"):
        require_unseen(words(0, 4), words(1000, 4), words(128, 4))


@pytest.fixture
def copied(text_file, tmp_path):
    """The search text under another name, with another beginning."""
    copy = tmp_path / "other.txt"
    copy.write_text(f"A line before it.\n{text_file.read_text()}")
    return copy


def no_ranking(*args, **settings):
    raise AssertionError("the model is not ranked before the texts are compared")


def test_a_copy_of_the_text_is_no_other_text(ppo_script, tiny_folder, text_file, copied, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    changes = {"test-text": copied, "test-windows": 400, "calibration-windows": 100}
    flags = settings(tiny_folder, text_file, run, **changes)
    monkeypatch.setattr(ppo_script, "build_evaluator", no_ranking)
    assert run_main(ppo_script, flags) == 2
    assert "of the test text is also search or calibration text" in " ".join(capsys.readouterr().err.split())
    assert not run.exists()


@pytest.mark.parametrize("script", ["compare", "tables", "compare_runs", "reward_study", "windows"])
def test_every_script_that_takes_a_test_text_looks_at_it_before_it_ranks(
    script, whole, tiny_folder, text_file, copied, tmp_path, monkeypatch, capsys
):
    module = load_script(f"evaluate/{script}.py")
    if script != "windows":  # which measures nothing
        ranks = measuring if script in ("compare", "tables") else module
        monkeypatch.setattr(ranks, "build_evaluator", no_ranking)
    of_runs = script in ("compare_runs", "reward_study")
    model = ("--table", 2, "--models", tiny_folder) if script == "tables" else ("--model", tiny_folder)
    names = (whole,) if of_runs else (*model, "--text", text_file)
    sizes = () if of_runs else ("--seq-len", 64, "--calibration-windows", 100)
    out = ("--out", tmp_path / "out") if script in ("compare", "tables") else ()
    test = ("--test-text", copied, "--test-seq-len", 64, "--test-windows", 120)
    monkeypatch.setattr(sys, "argv", [script, *map(str, (*names, *sizes, *out, *test))])
    assert module.main() == 2
    assert "of the test text is also search or calibration text" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
