"""A model of OPT-1.3B's shape, with random weights: the search completes, and does not need a second copy of it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer
from transformers import AutoModelForCausalLM, OPTConfig

SCRIPT = Path(__file__).parents[1] / "train" / "ppo.py"
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
        "--model": folder, "--timesteps": 2, "--samples": 1, "--calibration-windows": 2, "--test-windows": 1,
        "--run": tmp_path / "run", "--dtype": "bfloat16", "--device": "cpu", "--ridge": None,
    }  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    command = [sys.executable, str(SCRIPT), *words, "--no-calibrated", "--no-save-model"]
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
