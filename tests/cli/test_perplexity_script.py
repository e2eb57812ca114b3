"""evaluate/perplexity.py on tiny models, and the interval that it prints."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, load_script, tiny_model

import ffprune_env as ff
from ffprune_env.lm.intervals import perplexity_interval
from ffprune_env.lm.loss import window_losses
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores

WRITTEN = ("opt", "llama", "llama-gqa", "mistral", "qwen2")


def save_pruned(family, folder):
    """A calibrated pruned model on disk, in float32; returns what it was made from and what was kept."""
    prunable = PrunableModel(tiny_model(family).float())
    stats = collect_statistics(prunable, torch.randint(1, 256, (4, 48), generator=torch.Generator().manual_seed(0)))
    prunable.rank(wanda_scores(prunable, stats))
    rng = np.random.default_rng(0)
    kept = np.array([rng.integers(1, unit.n_groups) for unit in prunable.units])
    calibration = RidgeCalibration(prunable, stats)
    ff.save_pruned(prunable, kept, folder, byte_tokenizer(), calibration)
    return prunable, kept, calibration


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Exit code, table, errors and JSON of a run of the script in float32."""

    def run(*arguments):
        file = tmp_path / "result.json"
        words = ["evaluate/perplexity.py", *arguments, "--dtype", "float32", "--json", file]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        monkeypatch.setenv("COLUMNS", "300")
        code = load_script("evaluate/perplexity.py").main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err, json.loads(file.read_text()) if file.exists() else None

    return run


def test_a_dense_model_is_measured_on_all_of_a_file(run, tiny_folder, text_file):
    code, out, _, result = run(tiny_folder, "--text", text_file, "--seq-len", 64, "--windows", 5, "--batch-size", 2)
    assert code == 0
    model, tokenizer = ff.load_model(str(tiny_folder), "float32")
    windows = ff.load_windows(str(text_file), tokenizer, "all", 64, 5)
    assert result["ppl"] == pytest.approx(ff.perplexity(model, windows), rel=1e-6)
    assert result["losses"] == pytest.approx(window_losses(model, windows).tolist(), rel=1e-5)
    assert result["interval"] == list(perplexity_interval(result["losses"]))
    assert (result["split"], result["windows"], result["tokens"]) == ("all", 5, 320)
    assert (result["sparsity"], result["total_sparsity"]) == (0, 0)
    row = next(line for line in out.splitlines() if line.startswith("│"))
    low, high = result["interval"]
    assert all(cell in row for cell in (f" {result['ppl']:.2f} ", f"{low:.2f} to {high:.2f}", " 5 ", " 320 ", "0.00%"))
    assert "Student's t over the losses of windows, windows taken as independent" in " ".join(out.split())


@pytest.mark.parametrize("family", WRITTEN)
def test_a_pruned_folder_says_what_was_removed(family, run, text_file, tmp_path):
    prunable, kept, calibration = save_pruned(family, tmp_path / "model")
    code, out, _, result = run(tmp_path / "model", "--text", text_file, "--seq-len", 64, "--windows", 3)
    assert code == 0
    assert result["sparsity"] == pytest.approx(prunable.sparsity(kept), rel=1e-12)
    assert result["total_sparsity"] == pytest.approx(prunable.total_sparsity(kept), rel=1e-12)
    assert 0 < result["total_sparsity"] < result["sparsity"] < 1
    with prunable.pruned(kept, calibration) as model:
        windows = ff.load_windows(str(text_file), byte_tokenizer(), "all", 64, 3)
        assert result["ppl"] == pytest.approx(ff.perplexity(model, windows), rel=1e-4)
    assert f"{prunable.sparsity(kept):.2%}" in out
    assert f"{prunable.total_sparsity(kept):.2%}" in out


@pytest.mark.parametrize(
    ("family", "heads", "kept", "told"),
    [
        ("llama-gqa", "balanced", [0, 20, 1, 7, 2, 24], True),  # a part of an attention went beside a whole one
        ("llama-gqa", "groups", [0, 20, 1, 7, 2, 24], True),
        ("llama-gqa", "single", [0, 20, 3, 7, 4, 24], True),
        ("llama-gqa", "balanced", [0, 20, 2, 7, 2, 24], False),  # no attention tells
        ("llama-gqa", "groups", [2, 20, 0, 7, 2, 24], False),
        ("llama-gqa", "balanced", [2, 20, 2, 7, 2, 24], False),
        ("llama-gqa", "balanced", [2, 24, 2, 24, 2, 24], True),  # nothing went
        ("llama", "single", [0, 20, 4, 7, 4, 24], True),  # each query head has keys of its own
    ],
)
def test_what_was_removed_is_right_or_unknown_where_whole_attentions_went(
    family, heads, kept, told, run, text_file, tmp_path
):
    prunable, folder = PrunableModel(tiny_model(family).float(), heads=heads), tmp_path / "run" / "model"
    prunable.rank([np.arange(layout.n_members) for layout in prunable.layouts])
    ff.save_pruned(prunable, kept, folder, byte_tokenizer())
    arguments = (folder, "--text", text_file, "--seq-len", 64, "--windows", 1)
    code, out, _, result = run(*arguments)
    assert code == 0
    assert result["total_sparsity"] == pytest.approx(prunable.total_sparsity(kept), rel=1e-12)
    expected = pytest.approx(prunable.sparsity(kept), rel=1e-12)
    assert result["sparsity"] == (expected if told else None)
    assert ("unknown" in out) is not told
    (tmp_path / "run" / "config.yaml").write_text(f"heads: {heads}\n")  # of the search that wrote it
    assert run(*arguments)[-1]["sparsity"] == expected
    (tmp_path / "run" / "config.yaml").write_text("{")  # somebody else's
    assert run(*arguments)[-1]["sparsity"] == (expected if told else None)


def test_a_lack_of_memory_is_one_line(run, tiny_folder, text_file, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(load_script("evaluate/perplexity.py"), "window_losses", no_memory)
    code, out, err, result = run(tiny_folder, "--text", text_file, "--seq-len", 64, "--windows", 1)
    assert (code, result) == (1, None)
    assert err == "error: CUDA out of memory. Tried to allocate 2 GiB\n"
    assert "│" not in out


def test_the_test_part_of_a_file_is_what_a_search_never_saw(run, tiny_folder, text_file):
    arguments = (tiny_folder, "--text", text_file, "--seq-len", 64, "--windows", 2)
    model, tokenizer = ff.load_model(str(tiny_folder), "float32")
    for split in ("test", "all"):
        result = run(*arguments, "--split", split)[-1]
        windows = ff.load_windows(str(text_file), tokenizer, split, 64, 2)
        assert (result["split"], result["ppl"]) == (split, pytest.approx(ff.perplexity(model, windows), rel=1e-6))
    named = run(tiny_folder, "--text", "python-docs", "--windows", 2)[-1]
    windows = ff.load_windows("python-docs", tokenizer, "test", 128, 2)
    assert (named["split"], named["ppl"]) == ("test", pytest.approx(ff.perplexity(model, windows), rel=1e-6))


def test_windows_are_as_long_as_the_model_allows(run, tiny_folder, text_file, caplog):
    result = run(tiny_folder, "--text", text_file, "--windows", 2)[-1]
    assert (result["seq_len"], result["tokens"]) == (128, 256)
    assert "the model takes 128 tokens: windows have as many, not 2048" in caplog.text
    caplog.clear()
    run(tiny_folder, "--text", text_file, "--windows", 2, "--seq-len", 128)
    assert "the model takes" not in caplog.text


def test_a_window_without_a_loss_makes_it_inf_and_says_so(run, tmp_path, caplog):
    model = tiny_model("opt").float()  # whose norm turns numbers near the largest into none
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    tokenizer = byte_tokenizer()
    model.get_input_embeddings().weight.data[tokenizer("Z")["input_ids"][0]] = 3e38
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(63 * "ab" + "cd" + 127 * "e" + "Z" + 128 * "f")
    code, out, _, result = run(tmp_path / "model", "--text", tmp_path / "text.txt", "--seq-len", 64)
    assert code == 0
    assert " inf " in out
    assert " none " in out
    assert (result["ppl"], result["interval"], result["windows"]) == (None, None, 6)
    assert result["non_finite"] == ["ppl", "losses"]
    assert "perplexity is inf: 1 of 6 windows have no finite loss" in caplog.text


def test_one_window_has_no_interval(run, tiny_folder, text_file):
    code, out, _, result = run(tiny_folder, "--text", text_file, "--seq-len", 64, "--windows", 1)
    assert code == 0
    assert math.isfinite(result["ppl"])
    assert result["interval"] is None
    assert " none " in out


def test_bad_input_gets_one_line(run, tiny_folder, text_file, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    for arguments, message in (
        ((tiny_folder, "--text", text_file, "--batch-size", 0), "--batch-size must be at least 1, got 0"),
        ((tiny_folder, "--text", text_file, "--seq-len", 1), "--seq-len must be at least 2, got 1"),
        ((tiny_folder, "--text", text_file, "--windows", 0), "--windows must be at least 1, got 0"),
        ((tiny_folder, "--text", text_file, "--windows", 9999), "9999 were asked"),
        ((tiny_folder, "--text", "python-docs", "--split", "all"), "--split all is for files"),
        ((tiny_folder, "--text", "absent.txt"), "no such file"),
        ((tiny_folder, "--text", "c4"), "comes from the Hugging Face hub"),
        ((tmp_path, "--text", text_file), "holds no config.json"),
        ((tmp_path / "run", "--text", text_file), f"no config.json; did you mean {tmp_path / 'run' / 'model'}?"),
        (("absent", "--text", text_file), "unknown model 'absent'"),
    ):
        code, _, err, result = run(*arguments)
        assert code == 2
        (line,) = err.splitlines()
        assert message in line
        assert result is None


def test_a_file_that_cannot_be_written_is_found_out_first(tmp_path):
    script = load_script("evaluate/perplexity.py")
    with pytest.raises(OSError, match="there is no folder"):
        script.measure(script.Args(measured="absent", json=tmp_path / "no" / "x.json"))
