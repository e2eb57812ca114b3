"""Tiny pruned models to write, and what they compute."""

from __future__ import annotations

import json

import numpy as np
import torch
from conftest import tiny_model

from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores

WRITTEN = ("opt", "llama", "llama-gqa", "mistral", "qwen2")
PROMPT = torch.tensor([[5, 17, 23, 200, 3]])


def ranked(family, seed=0):
    """A ranked tiny model in float64, its calibration, and a random policy that keeps a part of every unit."""
    prunable = PrunableModel(tiny_model(family, seed))
    windows = torch.randint(1, 256, (4, 48), generator=torch.Generator().manual_seed(seed))
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    rng = np.random.default_rng(seed)
    kept = np.array([rng.integers(1, unit.n_groups) for unit in prunable.units])
    return prunable, RidgeCalibration(prunable, stats), kept


def logits(model, tokens, **kwargs):
    with torch.no_grad():
        return model(tokens, **kwargs).logits


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
