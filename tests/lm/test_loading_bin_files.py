"""Checkpoints as .bin files: read where there is nothing else, checked as others are, and their code never runs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from damaged_checkpoint import (
    ON_DISK,
    UP,
    as_bin,
    float8,
    refused,
    without,
)
from safetensors.torch import load_file
from tiny_runs import assert_same, run_main, settings

from ffprune_env.lm.models import load_model
from ffprune_env.lm.stored_tensors import stored_tensors


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A whole checkpoint, untied, whose biases are in its config, for a test to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_files_are_read_where_there_are_no_safetensors(folder, windows, zipped):
    expected = load_model(str(folder), "float32")[0](windows).logits
    as_bin(folder, _use_new_zipfile_serialization=zipped)
    torch.testing.assert_close(load_model(str(folder), "float32")[0](windows).logits, expected, rtol=0, atol=0)
    assert stored_tensors(folder)[UP].shape == (24, 32)


class Runs:
    """What a pickle can do: make a folder when it is read."""

    def __reduce__(self):
        return Path.mkdir, (Path("ran"),)


def as_bin_shards(folder, change=lambda shard: shard):
    """Two shards and their index, as large checkpoints have them; ``change`` edits the second one."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in (0, 1)}
    for i, (file, of) in enumerate(shards.items()):
        shard = {name: weights[name] for name in of}
        torch.save(change(shard) if i else shard, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, of in shards.items() for name in of}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return sorted(shards)


def test_bin_files_in_shards_are_read_by_their_index(folder, windows):
    expected = load_model(str(folder), "float32")[0](windows).logits
    _, second = as_bin_shards(folder)
    assert torch.equal(load_model(str(folder), "float32")[0](windows).logits, expected)
    assert stored_tensors(folder)[UP].shape == (24, 32)
    (folder / second).unlink()
    assert f"is incomplete: {second} is missing" in refused(folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors_are_read_where_there_are_both(folder, windows, monkeypatch, tmp_path, sharded):
    """Of the others not a byte: neither other weights nor code."""
    monkeypatch.chdir(tmp_path)
    expected = load_model(str(folder), "float32")[0](windows).logits
    kept = (folder / "model.safetensors").read_bytes()
    if sharded:
        as_bin_shards(folder, lambda shard: {**shard, "x": Runs()})
    else:
        as_bin(folder, lambda weights: {"x": Runs()} | {name: x + 1 for name, x in weights.items()})
    (folder / "model.safetensors").write_bytes(kept)
    assert torch.equal(load_model(str(folder), "float32")[0](windows).logits, expected)
    assert not Path("ran").exists()


def test_code_in_any_pickle_of_a_checkpoint_is_refused_and_does_not_run(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Runs()))  # which runs, where it is let
    Path("ran").rmdir()
    _, second = as_bin_shards(folder, lambda shard: {**shard, "x": Runs()})
    assert f"{second} is damaged, or holds Python objects beside its tensors, which are never run; save" in refused(
        folder
    )
    for file in folder.glob("pytorch_model*"):
        file.unlink()
    for content in (
        pickle.dumps(Runs(), protocol=2),
        pickle.dumps({"x": Runs()}, protocol=0),
    ):  # no archive of torch's at all
        (folder / "pytorch_model.bin").write_bytes(content)
        assert "pytorch_model.bin is damaged" in refused(folder)
    torch.save({"x": Runs()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "holds Python objects beside its tensors, which are never run" in refused(folder)
    assert not Path("ran").exists()


def test_a_search_of_bin_files_is_that_of_safetensors(folder, whole, ppo_script, text_file, tmp_path):
    as_bin_shards(folder)
    assert run_main(ppo_script, settings(folder, text_file, tmp_path / "run")) == 0
    assert_same(tmp_path / "run", whole)


def test_a_search_of_a_malicious_file_ends_before_it_begins(
    folder, ppo_script, text_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    as_bin(folder, lambda weights: {**weights, "x": Runs()})
    capsys.readouterr()
    assert run_main(ppo_script, settings(folder, text_file, tmp_path / "run")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pytorch_model.bin is damaged, or holds Python objects beside its tensors, which are never run" in line
    assert not Path("ran").exists()
    assert not (tmp_path / "run").exists()


def test_a_malicious_file_from_the_hub_is_not_recommended(folder, monkeypatch, tmp_path):
    """What torch says of it proposes to run the code; from the hub it is torch that reads a file first."""
    monkeypatch.chdir(tmp_path)
    as_bin(folder, lambda weights: {**weights, "x": Runs()})
    monkeypatch.setattr("ffprune_env.lm.loading_report.stored_tensors", lambda folder: {})
    line = refused(folder)
    assert "it is damaged, or holds Python objects beside its tensors, which are never run" in line
    assert "weights_only" not in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (without(UP), f"1 tensor is missing ({UP});"),
        (float8(False), "21 tensors are stored as float8_e4m3fn"),
        (lambda weights: {"state_dict": weights}, "must hold tensors only, got dict under 'state_dict'"),
        (list, "must hold a dict of tensors, got list"),
        (lambda weights: {**weights, "x": Runs()}, "holds Python objects beside its tensors, which are never run"),
    ],
    ids=["missing", "float8", "nested", "list", "code"],
)
def test_bin_files_are_checked_too(folder, content, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    as_bin(folder, content)
    assert says in refused(folder)
    assert not Path("ran").exists()


def test_bin_files_that_are_damaged_or_cannot_stay_on_disk(folder):
    as_bin(folder)
    assert "cannot be spread to disk unless it is stored as safetensors" in refused(folder, **ON_DISK)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    assert "pytorch_model.bin is damaged or cut short" in refused(folder)
    file.write_bytes(b"a pickle")
    assert "pytorch_model.bin is damaged or cut short" in refused(folder)
