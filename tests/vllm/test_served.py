"""Pruned models in vLLM: the tokens and log-probabilities of transformers, and an answer over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.serving import trial

PYTHON = Path(os.environ.get("FFPRUNE_VLLM_PYTHON", Path(__file__).parents[2] / ".venv-vllm/bin/python"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason="make vllm makes the environment that these need"),
]

NEW_TOKENS = 12
TINY = {
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": {**TINY, "head_dim": 32, "attention_bias": True},
    "llama-multi-head": {**TINY, "num_key_value_heads": 6},
    "mistral": {**TINY, "head_dim": 32, "sliding_window": 16},
    "qwen2": TINY,
    "qwen3": {**TINY, "head_dim": 32},
    "gemma": {**TINY, "head_dim": 32},
    "gemma2": {**TINY, "head_dim": 32, "sliding_window": 16},
    "gemma3_text": {**TINY, "head_dim": 32, "sliding_window": 16},
    "granite": TINY,
    "cohere": {**TINY, "head_dim": 32, "use_qk_norm": True},
    # Longer than the text: the window of vLLM's Cohere 2 is a token longer than that of transformers.
    "cohere2": {**TINY, "head_dim": 32, "sliding_window": 64},
    "smollm3": {**TINY, "head_dim": 32, "no_rope_layers": [1, 0, 1]},
    "phi3": TINY,
    "olmo2": TINY,
    "opt": {**TINY, "ffn_dim": 160, "word_embed_proj_dim": 192},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pruned models: a layer with all its heads, and two with fewer, of which one no longer reads some keys."""
    return {name: written(name, tmp_path_factory.mktemp(name)) for name in MODELS}


def written(name, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name.split("-")[0], **MODELS[name]), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.05))
    prunable = ff.PrunableModel(model)
    # The last layer keeps heads 0, 1 and 2 of six: the second key/value head goes unread.
    prunable.rank([-torch.arange(layout.n_members).numpy() for layout in prunable.layouts])
    heads = {0: 6, 1: 4, 2: 3}
    kept = [
        heads[unit.layer] if unit.kind == "attention" else max(1, unit.n_groups * (3 + unit.layer) // 5)
        for unit in prunable.units
    ]
    ff.save_pruned(prunable, kept, folder)
    return folder


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_tokens_and_log_probabilities_are_those_of_transformers(folders, eager):
    chosen = folders if eager else {name: folders[name] for name in ("llama", "qwen3", "opt")}
    found = trial.by_vllm(chosen, PYTHON, eager)
    assert {name: one for name, one in found.items() if not one.same} == {}


def test_a_request_is_answered_over_http(folders):
    prompt = torch.randint(3, 512, (24,), generator=torch.Generator().manual_seed(2))
    folder = str(folders["llama"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = f"--port {port} --skip-tokenizer-init --dtype float32 --enforce-eager --max-model-len 128".split()
    server = subprocess.Popen(
        [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *arguments],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    request = {"model": folder, "prompt": prompt.tolist(), "max_tokens": NEW_TOKENS, "temperature": 0}
    request |= {"ignore_eos": True, "return_token_ids": True, "detokenize": False}
    try:
        answer = asked(f"http://127.0.0.1:{port}/v1/completions", request, server)
    finally:
        server.terminate()
        server.wait(60)
    model = ff.load_pruned(folder, device="cpu").float()
    settings = {"do_sample": False, "eos_token_id": None, "max_new_tokens": NEW_TOKENS}
    tokens = model.generate(prompt[None], attention_mask=torch.ones(1, 24), **settings)
    assert answer["choices"][0]["token_ids"] == tokens[0, 24:].tolist()


def asked(url, request, server, patience=600):
    """What a server answers as soon as it is up."""
    message = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})
    until = time.monotonic() + patience
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(message) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except urllib.error.URLError:
            time.sleep(1)
    raise AssertionError(f"no answer; the server's exit code is {server.poll()}")
