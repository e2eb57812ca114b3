"""Tiny models to be written as GGUF files, and how far llama.cpp's logits are from theirs."""

from __future__ import annotations

import numpy as np
import torch
from conftest import LLAMA_LIKE, byte_tokenizer, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.export.gguf.llama_cpp import LlamaCpp
from ffprune_env.pruning.prunable import PrunableModel

MERGES = [("e", "n"), ("1", "2")]  # llama.cpp refuses a tokenizer without any
#: Heads and hidden states that llama.cpp can quantize, and channels that have to be filled up for it.
WIDE = {**LLAMA_LIKE, "head_dim": 32, "num_key_value_heads": 2, "intermediate_size": 40}


def wide_model(family, **settings):
    """A random model in float32 whose attention looks at few tokens, so that positions matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**WIDE, **settings}), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if ".q_proj" in name or ".k_proj" in name else 0.2))
    return model.eval()


def pruned(model, kept, folder, tokenizer=None, seed=0):
    """Writes a model with its groups in a random order."""
    prunable = PrunableModel(model)
    rng = np.random.default_rng(seed)
    prunable.rank([rng.random(unit.n_groups) for unit in prunable.units])
    ff.save_pruned(prunable, kept, folder, tokenizer=tokenizer or byte_tokenizer(MERGES))
    return folder


def pruned_folder(folder, family, kept, seed=0, vocab_size=256):
    model = tiny_model(family, seed).float()
    model.resize_token_embeddings(vocab_size)
    return pruned(model, kept, folder, seed=seed)


@torch.no_grad()
def relative_error(model, file, window):
    """How far llama.cpp's logits are from a model's, in standard deviations of them."""
    ours = model(window[None]).logits[0]
    return float((LlamaCpp(file, 64).logits(window.tolist()) - ours).abs().max() / ours.std())
