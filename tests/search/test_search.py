"""ff.search: from a model and a text to a pruned model, in one call."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
from conftest import byte_tokenizer, tiny_model

import ffprune_env as ff
from ffprune_env.search.search import _settings_of

SMALL = {
    "seq_len": 64, "search_windows": 2, "final_windows": 2, "curve_windows": 2, "calibration_windows": 4,
    "test_seq_len": 64, "test_windows": 2, "evaluations": 8, "batch_size": 1,
}  # fmt: skip


def test_a_folder_goes_in_and_a_smaller_model_comes_out(tiny_folder, text_file, tmp_path):
    heard = []
    result = ff.search(tiny_folder, text=str(text_file), sparsity=0.3, listeners=[heard.append], **SMALL)
    assert result.samples == heard
    assert len(heard) == 8
    assert result.allocation.sparsity >= 0.3
    assert list(result.cost) == ["ranking", "start", "search", "finalists", "calibration"]
    assert all(cost.forward_passes > 0 for cost in result.cost.values())
    again = ff.allocate(result.scores, 0.3, result.evaluator.units)
    np.testing.assert_array_equal(again.kept, result.allocation.kept)
    result.save(tmp_path / "pruned")
    model, tokenizer = ff.load_model(str(tmp_path / "pruned"))
    test = ff.load_windows(str(text_file), tokenizer, "test", 64, 2)
    assert ff.perplexity(model, test) == pytest.approx(result.test_ppl, rel=1e-4)
    assert ff.perplexity(ff.load_model(str(tiny_folder))[0], test) == pytest.approx(result.dense_ppl, rel=1e-4)
    assert f"| perplexity, pruned | {result.test_ppl:.2f} |" in (tmp_path / "pruned" / "README.md").read_text()


def test_a_short_text_leaves_fewer_windows_for_the_last_look(tiny_folder, text_file, tmp_path, caplog):
    """The plan says so, and the search keeps to it: it used to end with an error when everything was measured."""
    caplog.set_level(logging.INFO)
    short = tmp_path / "short.txt"
    words = text_file.read_text()
    short.write_text(words[: 64 * 13 * 4])
    more = {**SMALL, "final_windows": 8, "curve_windows": 8, "pool_windows": 2}
    result = ff.search(tiny_folder, text=str(short), sparsity=0.3, **more)
    left = result.evaluator.max_final_samples
    assert 1 < left < 8
    assert f"finalists {left} of 8" in caplog.text
    assert f"finalists at sparsity 0.3 on {left} windows that neither" in caplog.text


def test_a_model_in_memory_is_dense_afterwards_and_finds_the_same(tiny_folder, text_file, windows):
    model, tokenizer = ff.load_model(str(tiny_folder))
    before = ff.perplexity(model, windows)
    found = [
        ff.search(x, y, str(text_file), 0.3, **SMALL).allocation.kept
        for x, y in ((model, tokenizer), (tiny_folder, None))
    ]
    np.testing.assert_array_equal(*found)
    assert ff.perplexity(model, windows) == pytest.approx(before, rel=1e-5)


def test_what_cannot_be_is_said_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("ffprune_env.search.search.load_model", lambda *a: pytest.fail("the model was loaded"))
    for wrong, error, says in (
        ({"evaluatons": 8}, TypeError, "there is no setting 'evaluatons'"),
        ({"preset": "papers"}, ValueError, "unknown preset 'papers'; allowed are default, quick, paper"),
        ({"sparsity": 1.5}, ValueError, "--sparsity takes numbers between 0 and 1, got 1.5"),
        ({"sparsity": (0.2, 0.3)}, ValueError, "a model of one sparsity, got .0.2, 0.3.: give one number"),
        ({"sparsity": (0.2,)}, ValueError, "a model of one sparsity"),
        ({"criterion": "magic"}, ValueError, "unknown criterion 'magic'"),
        ({"init": "fishr"}, ValueError, "--init must be none, ffn-only"),
        ({"text": "absent.txt"}, OSError, "no such file"),
        ({"test_text": "wikitext"}, ValueError, "near names: wikitext2"),
        (
            {"patience": 3, "learning_rate": 0.1, "rollout": 4, "finalists": 3, "eval_every": 2},
            ValueError,
            "nothing looks at --learning-rate --rollout --finalists --patience --eval-every: from --init fisher-itera",
        ),
        ({"evaluations": 8, "eval_every": 2}, ValueError, "looks at --eval-every: TensorBoard shows .* ff.search leav"),
        ({"init": "ffn-only", "init_steps": 4}, ValueError, "looks at --init-steps: --init ffn-only is taken as it is"),
        ({"calibration": "none", "reward_model": "cut", "ridge": 0.1}, ValueError, "nothing looks at --ridge: nothing"),
        ({"log_std_init": 0.0, "normalize_advantage": False}, ValueError, "--normalize-advantage --log-std-init: from"),
    ):
        with pytest.raises(error, match=says):
            ff.search("smollm2-135m", **wrong)
    with pytest.raises(TypeError, match="needs its tokenizer beside it"):
        ff.search(tiny_model("llama"))


@pytest.mark.parametrize(
    "asked",
    [
        {"evaluations": 8, "rollout": 4, "patience": 3, "finalists": 3, "learning_rate": 0.1, "eval_every": 0},
        {"init": "ffn-only", "rollout": 4},
        {"evaluations": 0, "rollout": 4},  # who asks for no search knows that there is none
        {"preset": "quick"},  # what presets say is no wish
        {"patience": None},  # nor is a default that is given by name, or what leaves a thing out
        {"finalists": 0, "rollout": 8, "learning_rate": None},
        {"eval_every": 0},
        {"fresh_windows": False, "ramp_windows": False},
        {"evaluations": 8, "eval_every": None},
        {"init": "ffn-only", "init_steps": 0},
        {"calibration": "none", "reward_model": "cut", "openings": 0},
        {"preset": "paper"},
    ],
)
def test_what_something_looks_at_is_taken(asked, monkeypatch):
    """As on the command line."""
    monkeypatch.setattr("ffprune_env.search.search.load_model", lambda *a: pytest.fail("the model was loaded"))
    with pytest.raises(TypeError, match="needs its tokenizer beside it"):
        ff.search(tiny_model("llama"), **asked)


def test_no_windows_are_kept_for_looks_that_nobody_takes():
    unasked, asked = (_settings_of("default", 0.2, {"evaluations": 8, **more}) for more in ({}, {"eval_every": None}))
    assert asked == unasked


def test_the_paper_s_settings_can_be_asked_for(text_file):
    model = tiny_model("opt").float()
    result = ff.search(model, byte_tokenizer(), str(text_file), preset="paper", **{**SMALL, "rollout": 4})
    assert result.evaluator.calibration_asked == "ridge"
    assert not result.evaluator.calibrated


def test_the_name_is_a_function_whatever_was_imported_first():
    code = (
        "import ffprune_env as ff\nbefore = ff.search\nimport ffprune_env.search.settings as settings\n"
        "import ffprune_env.search.settings\nassert ffprune_env.search.settings is settings\n"
        "for found in (before, ff.search):\n    try:\n        found(preset='x')\n    except ValueError as error:\n"
        "        assert 'unknown preset' in str(error)\n    else:\n        raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
