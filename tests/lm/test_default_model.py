"""The default model, pruned, calibrated and written: in a process of its own, compiled, and in llama.cpp."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from plain import plain

import ffprune_env as ff
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.export.gguf.llama_cpp import LlamaCpp

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """`uniform` at σ = 0.3, whose query heads share keys unevenly, and windows of test text."""
    torch.set_num_threads(2)
    model, tokenizer = ff.load_model("smollm2-135m")
    evaluator = build_evaluator(
        model, tokenizer, "python-docs", plain(seq_len=256, calibration_windows=16, ridge=0.01, calibration="ridge")
    )
    kept = ff.uniform(0.3, evaluator.units).kept
    folder = tmp_path_factory.mktemp("default") / "model"
    ff.save_pruned(evaluator.prunable, kept, folder, tokenizer, evaluator.calibration)
    windows = ff.load_windows("python-docs", tokenizer, "test", 2048, 4)
    yield folder, tokenizer, windows
    torch.set_num_threads(1)


FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
windows = torch.load(sys.argv[2])
with torch.inference_mode():
    losses = [model(window[None], labels=window[None]).loss.double() for window in windows]
assert not any(name.startswith("ffprune_env") for name in sys.modules)
print(torch.stack(losses).mean().exp().item())
"""


def test_a_process_that_only_knows_transformers_measures_the_same(pruned, tmp_path, capsys):
    folder, _, windows = pruned
    torch.save(windows, tmp_path / "windows.pt")
    command = [sys.executable, "-c", FRESH, str(folder), str(tmp_path / "windows.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    theirs, ours = float(done.stdout), ff.perplexity(ff.load_pruned(folder), windows)
    with capsys.disabled():
        print(f"\nperplexity: ours {ours:.6f}, transformers alone {theirs:.6f} ({theirs / ours - 1:+.1e})")
    assert theirs == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize(("kind", "off"), [("f16", 0.01), ("bf16", 0.01), ("q8_0", 0.02), ("q4_k_m", 0.2)])
def test_llama_cpp_measures_the_same(pruned, tmp_path, capsys, kind, off):
    pytest.importorskip("cyllama")
    folder, tokenizer, windows = pruned
    report = export_gguf(folder, tmp_path / "model.gguf", kind)
    opened = LlamaCpp(tmp_path / "model.gguf")
    theirs = opened.losses(windows).mean().exp().item()
    ours = ff.perplexity(ff.load_model(str(folder), dtype="float32")[0], windows)
    with capsys.disabled():
        print(f"\n{kind}: {report}, perplexity: ours {ours:.4f}, llama.cpp {theirs:.4f} ({theirs / ours - 1:+.2%})")
    # Calibrated on 4096 tokens only, this model bears llama.cpp's 8-bit activations less well than a searched one.
    assert theirs == pytest.approx(ours, rel=off)
    text = tokenizer.decode(windows[0])
    assert opened.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert opened.chat_template == tokenizer.chat_template


def test_generation_compiled_by_inductor_is_that_of_eager(pruned):
    folder, tokenizer, _ = pruned
    model = ff.load_pruned(folder, dtype="float32")
    tokenizer.padding_side = "left"
    prompts = tokenizer(["The for statement is", "A class"], return_tensors="pt", padding=True)
    settings = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(**prompts, **settings)
    model.forward = torch.compile(model.forward)
    assert torch.equal(model.generate(**prompts, **settings), expected)
