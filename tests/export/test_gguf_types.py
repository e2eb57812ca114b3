"""Types of GGUF files: llama.cpp quantizes them, and what it did is read back from the file."""

from __future__ import annotations

import importlib.util

import gguf
import pytest
import torch
from gguf_models import pruned, pruned_folder, wide_model

import ffprune_env as ff
from ffprune_env.export.gguf import file as gguf_file
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.export.gguf.kinds import kind_of, plain_kind_of
from ffprune_env.export.gguf.llama_cpp import LlamaCpp
from ffprune_env.export.gguf.quantizer import quantize

KEPT = [3, 20, 4, 7, 2, 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pruned(wide_model("llama"), KEPT, tmp_path_factory.mktemp("wide") / "pruned")


@pytest.mark.parametrize(
    ("kind", "types", "off"),
    [("bf16", {"bf16": 23}, 0.01), ("q8_0", {"q8_0": 23}, 0.01), ("q4_k_m", {"q5_0": 20, "q8_0": 3}, 0.05)],
)
def test_llama_cpp_quantizes_every_matrix(tmp_path, folder, windows, kind, types, off):
    pytest.importorskip("cyllama")
    report = export_gguf(folder, tmp_path / "model.gguf", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert report.types == types
    fell_back = sum(sum(found.values()) for found in report.fallbacks.values())
    assert fell_back == (23 if kind == "q4_k_m" else 0)  # of rows of 32 it makes no blocks of 256
    ours = ff.perplexity(ff.load_pruned(folder), windows)
    theirs = LlamaCpp(tmp_path / "model.gguf", 64).losses(windows).mean().exp().item()
    assert theirs == pytest.approx(ours, rel=off)
    sizes = gguf.GGUFReader(tmp_path / "model.gguf").fields["deci.feed_forward_length"].contents()
    assert sizes == ([20, 7, 40] if kind == "bf16" else [32, 32, 64])  # channels of zeros fill up blocks


def test_files_of_other_names_stay_and_one_target_can_be_written_twice_at_once(tmp_path, folder, monkeypatch):
    pytest.importorskip("cyllama")
    out, users = tmp_path / "model.gguf", tmp_path / "model.gguf.whole"
    users.write_text("mine")

    def meanwhile(source, target, kind):
        monkeypatch.setattr(gguf_file, "quantize", quantize)
        export_gguf(folder, out, "q8_0")
        quantize(source, target, kind)

    monkeypatch.setattr(gguf_file, "quantize", meanwhile)
    assert export_gguf(folder, out, "q8_0").types == {"q8_0": 23}
    assert users.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "model.gguf.whole"]


def test_what_fell_back_is_told_by_the_names_that_llama_cpp_uses(tmp_path, folder):
    pytest.importorskip("cyllama")
    lines = export_gguf(folder, tmp_path / "model.gguf", "q6_k").told("q6_k")
    assert "0.1 MiB, q6_k: 23 q8_0" in lines[0]
    (fell_back,) = (line for line in lines if "stored as" in line)
    assert fell_back.startswith("stored as q8_0, since their rows do not divide into blocks of q6_k: 1 ")
    assert "3 attn_output" in fell_back


def test_rows_that_no_block_divides_are_refused_or_stay_f16(tmp_path):
    pytest.importorskip("cyllama")
    narrow = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24])
    with pytest.raises(ValueError, match="q8_0 stores 32 numbers at a time, which the heads of layer 0 together 24 is"):
        export_gguf(narrow, tmp_path / "model.gguf", "q8_0")
    report = export_gguf(narrow, tmp_path / "model.gguf", "q4_k_m")
    assert report.fallbacks["f16"] == {"attn_output": 2}  # of 24 and of 16 columns


def test_without_llama_cpp_plain_types_are_written_and_the_others_refused(tmp_path, folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cyllama" else find(name))
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    with pytest.raises(ValueError, match=r"^q4_k_m is quantized by llama\.cpp, which is not installed: pip"):
        export_gguf(folder, tmp_path / "other.gguf", "q4_k_m")
    with pytest.raises(ValueError, match="unknown type 'q9'; allowed are f32, f16, bf16, q8_0"):
        export_gguf(folder, tmp_path / "other.gguf", "q9")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_what_the_quantizer_says_is_one_line(tmp_path):
    pytest.importorskip("cyllama")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF no more")
    with pytest.raises(ValueError, match=r"^llama\.cpp cannot quantize the model to q8_0: .+$") as caught:
        quantize(tmp_path / "broken.gguf", tmp_path / "out.gguf", kind_of("q8_0"))
    assert "\n" not in str(caught.value)


def test_numbers_that_f16_does_not_hold_are_refused(tmp_path):
    model = wide_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] = 1e5
    folder = pruned(model, [4, 40] * 3, tmp_path / "pruned")
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_down\.weight has numbers that f16 cannot hold: take bf16"):
        export_gguf(folder, tmp_path / "model.gguf", "f16")
    export_gguf(folder, tmp_path / "model.gguf", "bf16")


def test_what_is_quantized_was_not_rounded_before():
    assert [plain_kind_of(x).name for x in (torch.float32, torch.float16, torch.bfloat16)] == ["f32", "f16", "bf16"]
