"""Ways to damage a checkpoint, and what is said of it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ffprune_env.lm.models import load_model

UP = "model.layers.1.mlp.up_proj.weight"
ON_DISK = {"device_map": "auto", "max_memory": "1KB"}


def refused(folder, **options):
    """The one line that refuses a checkpoint."""
    with pytest.raises((OSError, ValueError)) as caught:
        load_model(str(folder), "float32", **options)
    (line,) = str(caught.value).splitlines()
    print(line)
    return line


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    changed = {name: tensor.contiguous() for name, tensor in change(weights).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def without(*names):
    return lambda weights: {name: tensor for name, tensor in weights.items() if name not in names}


def with_these(**tensors):
    return lambda weights: weights | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def replaced(change, ending="proj.weight"):
    return lambda weights: {name: change(x) if name.endswith(ending) else x for name, x in weights.items()}


def as_bin(folder, content=lambda weights: weights, **options):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(content(weights), folder / "pytorch_model.bin", **options)


def in_shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder / "model.safetensors.index.json"


def float8(scales):
    def change(weights):
        scale = {f"{name}_scale_inv": torch.ones(1) for name in weights if name.endswith("proj.weight")}
        return replaced(lambda x: x.to(torch.float8_e4m3fn))(weights) | (scale if scales else {})

    return change
