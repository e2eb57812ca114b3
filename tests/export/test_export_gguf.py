"""GGUF files: what llama.cpp makes of them where it is installed, and what they hold where it is not."""

from __future__ import annotations

import importlib.util
import logging

import gguf
import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, load_script, tiny_model
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

import ffprune_env as ff
from ffprune_env.export.gguf_file import _expand_keys, export_gguf
from ffprune_env.pruning.prunable import PrunableModel

MERGES = [("e", "n"), ("1", "2")]  # llama.cpp refuses a tokenizer without any


def pruned_folder(folder, family, kept, seed=0, vocab_size=256):
    model = tiny_model(family, seed).float()
    model.resize_token_embeddings(vocab_size)
    prunable = PrunableModel(model)
    rng = np.random.default_rng(seed)
    prunable.rank([rng.random(unit.n_groups) for unit in prunable.units])
    ff.save_pruned(prunable, kept, folder, tokenizer=byte_tokenizer(MERGES))
    return folder


@pytest.fixture(scope="module")
def script():
    return load_script("evaluate/export_gguf.py")


@pytest.mark.parametrize(
    ("index", "expanded"),
    [
        ([0, 0, 1, 1], [0, 1]),  # even: as it is
        ([0, 0, 1], [0, 0, 1]),  # uneven: one for each query head
        ([0, 0, 2, 2], [0, 2]),  # a key head that no query reads
        ([0, 0, 0, 0, 1, 1], [0, 0, 1]),  # pairs share, one key head serves two of them
        ([1, 1, 1], [1]),
        ([2], [2]),
    ],
)
def test_keys_are_repeated_no_more_than_it_takes(index, expanded):
    assert _expand_keys(torch.tensor(index)) == expanded


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_file_has_a_size_for_every_layer(tmp_path, kind):
    folder = pruned_folder(tmp_path / "pruned", "llama-gqa", [3, 20, 4, 7, 1, 24])
    report = export_gguf(folder, tmp_path / "out" / "model.gguf", kind)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    field = {name: x.contents() for name, x in reader.fields.items()}
    assert field["general.architecture"] == "deci"
    assert field["deci.attention.head_count"] == [3, 4, 1]
    key_heads = field["deci.attention.head_count_kv"]
    assert key_heads[1:] == [2, 1]
    assert report.expanded_layers == (1 if key_heads[0] == 3 else 0)
    assert report.cache_growth == sum(key_heads) / 6
    assert field["deci.feed_forward_length"] == [20, 7, 24]
    assert field["deci.attention.key_length"] == field["deci.rope.dimension_count"] == 8
    assert f"{report.expanded_params} parameters more" in field["general.description"]
    assert report.size == (tmp_path / "out" / "model.gguf").stat().st_size
    shapes = {x.name: list(x.shape) for x in reader.tensors}
    assert shapes["blk.0.attn_q.weight"] == [32, 24]
    assert shapes["blk.0.attn_k.weight"] == [32, 8 * key_heads[0]]
    assert shapes["blk.1.ffn_down.weight"] == [7, 32]


@pytest.mark.parametrize("family", ["llama", "llama-gqa", "mistral"])
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_computes_what_we_compute(tmp_path, script, family, kind, windows, caplog):
    pytest.importorskip("llama_cpp")
    folder = pruned_folder(tmp_path / "pruned", family, [3, 20, 4, 7, 2, 24])
    with caplog.at_level(logging.WARNING):
        export_gguf(folder, tmp_path / "model.gguf", kind)
    if family == "mistral":  # llama.cpp's windows must fit the sliding window for the two to agree
        assert "the context is written as 8, not 128" in caplog.text
        windows = windows[:, :8]
    theirs = script.llama_cpp_perplexity(tmp_path / "model.gguf", windows)
    ours = ff.perplexity(ff.load_pruned(folder), windows)
    assert theirs == pytest.approx(ours, rel=1e-3 if kind == "f16" else 0.02)


def test_llama_cpp_splits_text_as_the_tokenizer_does(tmp_path, script):
    pytest.importorskip("llama_cpp")
    export_gguf(pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24]), tmp_path / "model.gguf")
    text = "Grüße, x = 1234;\n\tend"
    assert script.tokens_of(tmp_path / "model.gguf", text) == byte_tokenizer(MERGES)(text)["input_ids"]


def test_llama_cpp_splits_text_as_a_tokenizer_like_llamas_does(tmp_path, script):
    """Byte fallback, spaces as ▁, and merges whose order matters: "ab" and "bc" compete for the b of "abc"."""
    pytest.importorskip("llama_cpp")
    letters = "▁abcdxyz"
    merges = [("b", "c"), ("a", "b"), ("▁", "a"), ("bc", "d"), ("x", "y"), ("xy", "z"), ("▁a", "bcd")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *("".join(x) for x in merges)]
    model = models.BPE(
        {w: i for i, w in enumerate(words)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    ours = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    folder = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24], vocab_size=len(words))
    ours.save_pretrained(folder)
    export_gguf(folder, tmp_path / "model.gguf")
    for text in ("abcd abc xyz", "ab é xyxyz bcd"):
        assert script.tokens_of(tmp_path / "model.gguf", text) == ours(text)["input_ids"]


def test_a_tokenizer_that_is_not_bpe_is_refused(tmp_path):
    folder = pruned_folder(tmp_path / "pruned", "llama", [3, 20, 4, 7, 2, 24])
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(folder)
    with pytest.raises(ValueError, match="a WordLevel tokenizer cannot be written as GGUF"):
        export_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


@pytest.mark.parametrize(
    ("kind", "off", "tokens_differ", "says"),
    [
        ("f16", 1.003, False, None),
        ("f16", 1.01, False, "what was written is not what was measured: "),
        ("q8_0", 1.02, False, None),
        ("q8_0", 0.95, False, "rounding makes no more than 3.05% of difference"),
        ("f16", 1.0, True, "llama.cpp makes other tokens of text than the model was made for"),
    ],
)
def test_a_file_that_is_another_model_is_an_error(
    tmp_path, script, monkeypatch, capsys, text_file, kind, off, tokens_differ, says
):
    folder = pruned_folder(tmp_path / "pruned", "llama-gqa", [3, 20, 4, 7, 2, 24])
    find = importlib.util.find_spec
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: name if name == "llama_cpp" else find(name))
    ours = ff.load_pruned(folder, dtype="float32")
    monkeypatch.setattr(script, "llama_cpp_perplexity", lambda _, windows: off * ff.perplexity(ours, windows))
    tokenizer = byte_tokenizer(MERGES)
    monkeypatch.setattr(script, "tokens_of", lambda _, text: tokenizer(text)["input_ids"][tokens_differ:])
    flags = ["--type", kind, "--windows", "2", "--seq-len", "64", "--text", str(text_file)]
    monkeypatch.setattr("sys.argv", ["export_gguf.py", str(folder), str(tmp_path / "model.gguf"), *flags])
    assert script.main() == (1 if says else 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (1 if says else 0)
    assert says is None or says in lines[0]


def test_the_script_writes_and_refuses(tmp_path, script, monkeypatch, capsys):
    llama = pruned_folder(tmp_path / "llama", "llama-gqa", [3, 20, 4, 7, 2, 24])
    opt = pruned_folder(tmp_path / "opt", "opt", [3, 20, 4, 7, 2, 24])
    out = tmp_path / "model.gguf"
    monkeypatch.setattr("sys.argv", ["export_gguf.py", str(llama), str(out), "--type", "q8_0"])
    assert script.main() == 0
    printed = capsys.readouterr().out
    assert "share keys unevenly" in " ".join(printed.split())
    assert out.stat().st_size > 0
    written = out.read_bytes()
    for folder, message in ((opt, "a ffprune_opt cannot be written as GGUF"), (tmp_path / "absent", "no config.json")):
        monkeypatch.setattr("sys.argv", ["export_gguf.py", str(folder), str(out)])
        assert script.main() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert out.read_bytes() == written
    (llama / "tokenizer.json").unlink()
    with pytest.raises(OSError, match=r"holds no tokenizer\.json"):
        export_gguf(llama, out)
