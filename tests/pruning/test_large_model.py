"""A model of OPT-1.3B's shape, with random weights: the search completes, and does not need a second copy of it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from conftest import byte_tokenizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

SCRIPT = Path(__file__).parents[2] / "train" / "ppo.py"
OPT_1_3B = {
    "hidden_size": 2048,
    "ffn_dim": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "word_embed_proj_dim": 2048,
}


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    """The folder of the model, and the bytes of its weights."""
    folder = tmp_path_factory.mktemp("opt")
    model = AutoModelForCausalLM.from_config(OPTConfig(**OPT_1_3B), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder, sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.slow
def test_a_search_of_opt_1_3b_peaks_below_twice_the_model(opt, tmp_path, capsys):
    folder, weights = opt
    flags = {
        "--model": folder, "--evaluations": 2, "--search-windows": 1, "--calibration-windows": 2, "--test-windows": 1,
        "--run": tmp_path / "run", "--dtype": "bfloat16", "--device": "cpu", "--criterion": "wanda",
        "--calibration": "none", "--reward-model": "cut",
        "--init": "ffn-only", "--seq-len": 256,
    }  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    command = [sys.executable, str(SCRIPT), *words, "--no-save-model"]
    subprocess.run(command, check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    with capsys.disabled():
        print(f"\nweights {weights / 2**30:.2f} GiB, peak of the search {peak / 2**30:.2f} GiB")
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert 0.2 <= best["chosen"]["sparsity"] < 0.2001
    assert peak < 2 * weights


STATISTICS = """
import resource, sys
import psutil
import ffprune_env as ff
from ffprune_env.pruning.saliency import gram_bytes, stream_grams
model, tokenizer = ff.load_model(sys.argv[1], "bfloat16", "cpu")
prunable = ff.PrunableModel(model)
windows = ff.load_windows("python-docs", tokenizer, "calibration", 64, 2)
ff.perplexity(model, windows)  # weights are mapped from the file, and take no memory before they are used
before = psutil.Process().memory_info().rss
for gram in stream_grams(prunable, windows, int(1.5 * model.get_memory_footprint())):
    pass
print(gram_bytes(prunable), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.slow
def test_statistics_of_opt_1_3b_take_less_than_twice_the_model(opt, capsys):
    folder, weights = opt
    done = subprocess.run([sys.executable, "-c", STATISTICS, str(folder)], check=True, capture_output=True, text=True)
    matrices, peak = (int(word) for word in done.stdout.split())
    with capsys.disabled():
        sizes = (x / 2**30 for x in (weights, matrices, peak))
        print("\nweights {:.2f} GiB, Gram matrices {:.2f} GiB, peak of making them {:.2f} GiB".format(*sizes))
    assert matrices > 2 * weights  # all at once would not do
    assert peak < 2 * weights


LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
}


@pytest.fixture
def llama(tmp_path):
    """A random checkpoint of Llama-2-7B's shape in bfloat16, written layer by layer; and the bytes of its weights."""
    if psutil.virtual_memory().available < 8 * 2**30 or psutil.disk_usage(tmp_path).free < 20 * 2**30:
        pytest.skip("it takes 8 GiB of memory and 20 GiB of disk")
    config = LlamaConfig(**LLAMA_2_7B, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in AutoModelForCausalLM.from_config(config).state_dict().items()}
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        layer = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = shape
    for file, content in shards.items():
        weights = {x: torch.empty(y, dtype=torch.bfloat16).normal_(0, 0.02) for x, y in content.items()}
        save_file(weights, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, content in shards.items() for name in content}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    yield tmp_path, 2 * sum(shape.numel() for shape in shapes.values())
    for file in shards:
        os.unlink(tmp_path / file)


STEPS = """
import json, resource, sys, time
import numpy as np
import ffprune_env as ff
started = time.perf_counter()
evaluator = ff.load_evaluator(sys.argv[1], "python-docs", dtype="bfloat16", seq_len=256, n_samples=1,
                              calibration_windows=2, **json.loads(sys.argv[2]))
ready = time.perf_counter()
env = ff.PruneBanditEnv(evaluator, sparsity=0.2)
for seed in range(int(sys.argv[3])):
    env.reset()
    *_, info = env.step(np.random.default_rng(seed).normal(0, 0.1, env.action_space.shape).astype(np.float32))
    assert 0.2 <= info["sparsity"] < 0.201
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(info["ppl"], peak, ready - started, time.perf_counter() - ready)
"""


@pytest.mark.slow
def test_three_steps_of_llama_2_7b_take_one_copy_of_it(llama, capsys):
    folder, weights = llama
    if psutil.virtual_memory().available < 17 * 2**30:
        pytest.skip("it takes 17 GiB of memory")
    with capsys.disabled():
        _, peak = make_steps(folder, weights, {"device": "cpu"}, 3)
    assert peak < 1.25 * weights


@pytest.mark.slow
def test_a_step_of_llama_2_7b_streamed_from_disk_takes_6_gb(llama, capsys):
    folder, weights = llama
    with capsys.disabled():
        _, peak = make_steps(folder, weights, {"device_map": "auto", "max_memory": "5GB"}, 1)
    assert peak < 6e9


def make_steps(folder, weights, options, steps):
    """Makes environment steps in a process of their own; prints what they took, and returns perplexity and peak."""
    command = [sys.executable, "-c", STEPS, str(folder), json.dumps(options), str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    ppl, peak, loading, stepping = (float(word) for word in done.stdout.split())
    sizes = f"weights {weights / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB"
    print(f"\n{options}: {sizes}; ready after {loading:.0f} s, {steps} steps in {stepping:.0f} s; PPL {ppl:.2f}")
    return ppl, peak
