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


@pytest.mark.slow
def test_a_search_of_opt_1_3b_peaks_below_twice_the_model(tmp_path, capsys):
    model = AutoModelForCausalLM.from_config(OPTConfig(**OPT_1_3B), dtype=torch.bfloat16)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(tmp_path / "opt")
    byte_tokenizer().save_pretrained(tmp_path / "opt")
    del model
    flags = {
        "--model": tmp_path / "opt", "--timesteps": 2, "--samples": 1, "--calibration-windows": 2, "--test-windows": 1,
        "--run": tmp_path / "run", "--dtype": "bfloat16", "--device": "cpu",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), *(str(word) for pair in flags.items() for word in pair)]
    subprocess.run(command, check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    with capsys.disabled():
        print(f"\nweights {weights / 2**30:.2f} GiB, peak of the search {peak / 2**30:.2f} GiB")
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert 0.2 <= best["chosen"]["sparsity"] < 0.2001
    assert peak < 2 * weights
