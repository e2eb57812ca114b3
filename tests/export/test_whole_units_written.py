"""Folders of models that lost whole units: what they hold, what loads them, and what can be done with them again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import FAMILIES, MORE_FAMILIES, tiny_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

import ffprune_env as ff
from ffprune_env.export import trial
from ffprune_env.lm.tiny_families import own_perplexity
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.units import find_units

PROMPT = torch.tensor([[5, 17, 23, 200, 3]])


def ranked(family):
    prunable = PrunableModel(tiny_model(family).float())
    prunable.rank([np.arange(layout.n_members) % 3 for layout in prunable.layouts])
    return prunable


def kept_of(prunable, gone):
    """Two thirds of every unit but of those that are gone, by kind and layer."""
    return [0 if (u.kind, u.layer) in gone else max(1, u.n_groups * 2 // 3) for u in prunable.units]


GONE = {("attention", 0), ("ffn", 0), ("attention", 1), ("ffn", 2)}


@torch.no_grad()
def logits(model):
    return model(PROMPT).logits


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_a_family_without_some_units_is_read_generates_and_is_pruned_again(family, windows, tmp_path):
    prunable = ranked(family)
    kept = kept_of(prunable, GONE)
    ff.save_pruned(prunable, kept, tmp_path / "once")
    loaded = trial.load_by_its_own_code(tmp_path / "once")
    assert type(loaded).__module__.startswith("transformers_modules.")
    assert sum(p.numel() for p in loaded.parameters()) == prunable.params(kept)
    with prunable.pruned(kept) as pruned:
        torch.testing.assert_close(logits(loaded), logits(pruned), rtol=0, atol=1e-4)
        trial.require_same_text(loaded, pruned)
    read = ff.load_pruned(tmp_path / "once")
    left = [(u.kind, u.layer) for u, k in zip(prunable.units, kept, strict=True) if k]
    assert [(x.unit.kind, x.unit.layer) for x in find_units(read)] == left
    trial.require_pruned_again(read, windows, tmp_path / "again")


def test_every_unit_takes_exactly_its_rest_with_it(family, tmp_path):
    """The file of a model without one unit lacks its groups and its rest, number for number."""
    prunable = ranked(family)
    for i, unit in enumerate(prunable.units[:2]):
        kept = np.array([x.n_groups for x in prunable.units])
        kept[i] = 0
        ff.save_pruned(prunable, kept, tmp_path / str(i))
        held = sum(p.numel() for p in ff.load_pruned(tmp_path / str(i)).parameters())
        assert held == prunable.n_params - unit.n_params - unit.rest_params
        assert not [name for name in load_file(tmp_path / str(i) / "model.safetensors") if name.startswith(unit.name)]


def test_sizes_of_zero_say_what_is_gone(tmp_path):
    prunable = ranked("llama-gqa")
    ff.save_pruned(prunable, kept_of(prunable, GONE), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["num_attention_heads_per_layer"] == [0, 0, 2]
    assert config["num_key_value_heads_per_layer"][:2] == [0, 0]
    assert config["intermediate_size_per_layer"] == [0, 16, 0]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "    0  none                 0/4        none                 0/24" in card
    model = ff.load_pruned(tmp_path / "model")
    model.save_pretrained(tmp_path / "anew")
    assert torch.equal(logits(ff.load_pruned(tmp_path / "anew")), logits(model))
    base = AutoModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(model.lm_head(base(PROMPT).last_hidden_state), logits(model), rtol=0, atol=1e-6)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    assert logits(classifier).shape == (1, 3)


def test_a_size_of_zero_for_keys_alone_is_refused(tmp_path):
    prunable = ranked("llama-gqa")
    ff.save_pruned(prunable, kept_of(prunable, GONE), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text()) | {"num_key_value_heads_per_layer": [0, 0, 0]}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="give layer 2 2 query heads and 0 key/value heads"):
        ff.load_pruned(tmp_path / "model")


def test_what_is_left_can_go_step_by_step_until_a_layer_is_empty(windows, tmp_path):
    prunable = ranked("llama-gqa")
    ff.save_pruned(prunable, kept_of(prunable, GONE), tmp_path / "once")
    again = PrunableModel(ff.load_pruned(tmp_path / "once"))
    again.rank([np.zeros(layout.n_members) for layout in again.layouts])
    kept = [0 if unit.layer == 1 else unit.n_groups for unit in again.units]
    ff.save_pruned(again, kept, tmp_path / "twice")
    model = ff.load_pruned(tmp_path / "twice")
    with again.pruned(kept) as pruned:
        assert own_perplexity(model, windows) == pytest.approx(own_perplexity(pruned, windows))
        trial.require_same_text(model, pruned)
    assert [x.unit.name for x in find_units(model)] == ["model.layers.2.self_attn"]
