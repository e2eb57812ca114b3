"""Whatever breaks while a run begins or goes on: one clear line, no traceback, and nothing found is lost.

``pytest -s tests/run/test_faults.py`` prints what each fault says.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from safetensors.torch import load_file, save_file
from tiny_runs import SCRIPT, assert_same, cut_off, run_main, samples_of, settings


def one_line(capsys):
    """What was said on stderr, which is one line, and is printed."""
    (line,) = capsys.readouterr().err.splitlines()
    print(line)
    assert "Traceback" not in line
    return line


def broken_model(source, folder, name="model.safetensors"):
    shutil.copytree(source, folder)
    return folder, folder / name


def nan_weight(file):
    weights = load_file(file)
    next(x for name, x in weights.items() if name.endswith("down_proj.weight"))[0, 0] = math.nan
    save_file(weights, file, metadata={"format": "pt"})


def truncated(file):
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (nan_weight, "1 tensor is not finite as "),
        (truncated, "is damaged or cut short"),
        (lambda file: file.write_bytes(b""), "is damaged or cut short"),
        (lambda file: (file.parent / "config.json").write_text("{"), "config.json is not JSON"),
    ],
    ids=["nan-weight", "truncated-weights", "empty-weights", "broken-config"],
)
def test_a_broken_model(ppo_script, tiny_folder, text_file, tmp_path, capsys, breaks, says):
    folder, weights = broken_model(tiny_folder, tmp_path / "model")
    breaks(weights)
    assert run_main(ppo_script, settings(folder, text_file, tmp_path / "run")) == 2
    assert says in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_model(ppo_script, text_file, tmp_path, capsys):
    model = tiny_model("llama").float()
    model.resize_token_embeddings(60)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert run_main(ppo_script, settings(tmp_path / "model", text_file, tmp_path / "run")) == 2
    assert "the tokenizer does not fit the model: the text has token" in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"too short", b"\xff\xfe\x00"], ids=["empty", "short", "not-utf-8"])
def test_a_text_without_a_usable_window(ppo_script, tiny_folder, tmp_path, capsys, content):
    (tmp_path / "text.txt").write_bytes(content)
    assert run_main(ppo_script, settings(tiny_folder, tmp_path / "text.txt", tmp_path / "run")) == 2
    assert str(tmp_path / "text.txt") in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["/proc/ffprune/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written(ppo_script, tiny_folder, text_file, capsys, place):
    assert run_main(ppo_script, settings(tiny_folder, text_file, place)) == 2
    assert place in one_line(capsys)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "not-json"])
def test_a_damaged_policy_to_start_from(ppo_script, whole, tiny_folder, text_file, tmp_path, capsys, damage):
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    tensors, facts = (other / "checkpoints" / f"policy.{suffix}" for suffix in ("safetensors", "json"))
    {
        "truncated": lambda: truncated(tensors),
        "empty": lambda: tensors.write_bytes(b""),
        "missing": tensors.unlink,
        "not-json": lambda: facts.write_text("[1"),
    }[damage]()
    assert run_main(ppo_script, settings(tiny_folder, text_file, tmp_path / "run", init=other)) == 2
    assert "no policy can be read from" in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", "start.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00"])
def test_a_damaged_file_of_a_run_to_go_on_with(ppo_script, whole, tmp_path, capsys, name, content):
    run = tmp_path / "run"
    cut_off(whole, run, (whole / "samples.jsonl").stat().st_size)
    (run / name).write_text(content)
    before = (run / "samples.jsonl").read_bytes()
    assert run_main(ppo_script, ["--resume", run]) == 2
    assert name in one_line(capsys)
    assert (run / "samples.jsonl").read_bytes() == before


def test_a_measurement_that_is_not_a_number(ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, capsys):
    """A collapsed model is a bad sample, not the end; and the search can still be resumed."""
    evaluator = sys.modules["ffprune_env.evaluators.language_model"]
    real, calls = evaluator._perplexity, []

    def sometimes_nan(model, windows, batch_size):
        calls.append(1)
        return math.nan if len(calls) in (8, 9) else real(model, windows, batch_size)

    monkeypatch.setattr(evaluator, "_perplexity", sometimes_nan)
    flags = settings(tiny_folder, text_file, tmp_path / "run")
    assert run_main(ppo_script, [*flags, "--no-fresh-windows"]) == 0
    samples = samples_of(tmp_path / "run")
    collapsed = [x for x in samples if x["collapsed"]]
    assert len(collapsed) == 2
    assert all(x["ppl"] is None and x["reward"] == 0 for x in collapsed)
    monkeypatch.setattr(evaluator, "_perplexity", real)
    cut_off(tmp_path / "run", tmp_path / "again", (tmp_path / "run" / "samples.jsonl").stat().st_size)
    assert run_main(ppo_script, ["--resume", tmp_path / "again"]) == 0
    assert_same(tmp_path / "again", tmp_path / "run")


@pytest.mark.parametrize("limit", [1000, 15_000])
def test_a_full_disk(ppo_script, tiny_folder, text_file, whole, tmp_path, limit):
    """No file may grow beyond a limit: the settings do not fit, or the first checkpoint."""
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), *settings(tiny_folder, text_file, run)]
    failed = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    (line,) = failed.stderr.splitlines()
    print(line)
    assert failed.returncode in (1, 2)
    assert "File too large" in line
    again = ["--resume", run] if (run / "config.yaml").exists() else settings(tiny_folder, text_file, run)
    assert run_main(ppo_script, again) == 0
    assert_same(run, whole)


def test_a_disk_that_fills_while_samples_are_written(
    ppo_script, tiny_folder, text_file, whole, tmp_path, capsys, monkeypatch
):
    """Half a line is written, and then no more: the samples before it are kept, and the run goes on later."""
    run, written = tmp_path / "run", []
    real = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, line):
            written.append(line)
            self.file.write(line if len(written) < 6 else line[: len(line) // 2])
            if len(written) >= 6:
                raise OSError(28, "No space left on device")

    def limited(path, *args, **kwargs):
        file = real(path, *args, **kwargs)
        return Full(file) if path.name == "samples.jsonl" and args[:1] == ("a",) else file

    monkeypatch.setattr(Path, "open", limited)
    assert run_main(ppo_script, settings(tiny_folder, text_file, run)) == 1
    line = one_line(capsys)
    assert "No space left on device" in line
    assert f"--resume {run} goes on" in line
    monkeypatch.setattr(Path, "open", real)
    assert run_main(ppo_script, ["--resume", run]) == 0
    assert_same(run, whole)


def test_memory_that_runs_out_in_the_middle(ppo_script, tiny_folder, text_file, whole, tmp_path, monkeypatch, capsys):
    evaluator = sys.modules["ffprune_env.evaluators.language_model"]
    real, calls = evaluator._perplexity, []

    def too_large(model, windows, batch_size):
        calls.append(1)
        if len(calls) == 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(model, windows, batch_size)

    monkeypatch.setattr(evaluator, "_perplexity", too_large)
    run = tmp_path / "run"
    assert run_main(ppo_script, settings(tiny_folder, text_file, run)) == 1
    assert "out of memory" in one_line(capsys)
    monkeypatch.setattr(evaluator, "_perplexity", real)
    assert run_main(ppo_script, ["--resume", run]) == 0
    assert_same(run, whole)
    assert json.loads((run / "manifest.json").read_text())["seed"] == 0
