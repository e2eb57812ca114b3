"""The folder of a pruned model: what is written, and what a damaged one gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer
from pruned_models import PROMPT, edit_config, logits, ranked
from safetensors.torch import load_file, save_file

import ffprune_env as ff
from ffprune_env.export import folder as export


def test_the_card_says_what_the_model_is(tmp_path):
    prunable, calibration, kept = ranked("opt")
    facts = ff.CardFacts("tiny/opt", 0.25, 12.345, 23.456, "words.txt, 8 windows of 64 tokens")
    ff.save_pruned(prunable, kept, tmp_path / "out", calibration=calibration, facts=facts)
    card = (tmp_path / "out" / "README.md").read_text()
    for expected in (
        "| base model | tiny/opt |",
        f"{prunable.sparsity(kept):.2%} (25.00% asked for)",
        f"{prunable.total_sparsity(kept):.2%}",
        f"| parameters before | {prunable.n_params:,} |",
        f"| parameters after | {prunable.params(kept):,} |",
        "12.35", "23.46", "8 windows of 64 tokens", "λ = 0.01", "trust_remote_code=True", "load_pruned",
    ):  # fmt: skip
        assert expected in card
    bars = [line for line in card.splitlines() if "█" in line]
    assert len(bars) == 3
    assert all(
        f"{k}/{unit.n_groups}" in bars[i // 2] for i, (k, unit) in enumerate(zip(kept, prunable.units, strict=True))
    )
    ff.save_pruned(prunable, kept, tmp_path / "bare")
    assert "| calibration | no |" in (tmp_path / "bare" / "README.md").read_text()


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_SHARD", "20KB")
    prunable, _, kept = ranked("llama")
    ff.save_pruned(prunable, kept, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    with prunable.pruned(kept) as model:
        expected = logits(model, PROMPT)
    torch.testing.assert_close(logits(ff.load_pruned(tmp_path / "out"), PROMPT), expected, rtol=0, atol=1e-9)


def test_a_crash_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    prunable, _, kept = ranked("llama")
    monkeypatch.setattr(export, "model_card", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ff.save_pruned(prunable, kept, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused(tmp_path):
    prunable, _, kept = ranked("llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(ValueError, match="exists already"):
        ff.save_pruned(prunable, kept, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other, _, all_kept = ranked("llama")
    other.model.config.model_type = "exaone4"
    with pytest.raises(ValueError, match="a pruned exaone4 cannot be written yet; families that can are llama, mist"):
        ff.save_pruned(other, all_kept, tmp_path / "exaone4")
    with pytest.raises(RuntimeError, match="cannot prune"), prunable.pruned(kept):
        ff.save_pruned(prunable, kept, tmp_path / "inside")


@pytest.fixture
def sound(tmp_path, monkeypatch):
    """A pruned model in shards, for a test to damage."""
    monkeypatch.setattr(export, "_SHARD", "20KB")
    prunable, _, kept = ranked("llama-gqa")
    kept[0::2] = 3  # of four heads on two key/value heads
    ff.save_pruned(prunable, kept, tmp_path / "model", tokenizer=byte_tokenizer())
    return tmp_path / "model"


def a_shard(folder):
    return sorted(folder.glob("model-*.safetensors"))[1]


def remove_shard(folder):
    a_shard(folder).unlink()


def truncate_shard(folder):
    a_shard(folder).write_bytes(a_shard(folder).read_bytes()[:-100])


def truncate_header(folder):
    a_shard(folder).write_bytes(a_shard(folder).read_bytes()[:20])


def drop_tensor(folder):
    tensors = load_file(a_shard(folder))
    tensors.pop(next(iter(tensors)))
    save_file(tensors, a_shard(folder), metadata={"format": "pt"})


def wrong_channels(folder):
    edit_config(folder, intermediate_size_per_layer=[1, 1, 1])


def too_few_layers(folder):
    edit_config(folder, num_hidden_layers=2)


def wrong_shapes(folder):
    edit_config(folder, num_attention_heads_per_layer=[1, "two", 3])


def other_family(folder):
    edit_config(folder, model_type="ffprune_opt")


def dense_family(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["num_attention_heads_per_layer"]
    (folder / "config.json").write_text(json.dumps(config))


def unknown_family(folder):
    edit_config(folder, model_type="ffprune_bloom")


def as_older_versions_wrote(folder):
    """The index in the weights alone, and one in every layer that lost query heads."""
    config = json.loads((folder / "config.json").read_text())
    assert None not in config.pop("kv_index_per_layer")
    del config["num_key_value_heads_per_layer"]
    (folder / "config.json").write_text(json.dumps(config))


def change_keys(folder, change):
    for shard in folder.glob("model-*.safetensors"):
        tensors = load_file(shard)
        changed = {name: change(x) if name.endswith("0.self_attn.kv_index") else x for name, x in tensors.items()}
        save_file(changed, shard, metadata={"format": "pt"})


def with_keys(index):
    def damage(folder):
        change_keys(folder, lambda _: index)

    return damage


def with_keys_alone(index):
    def damage(folder):
        as_older_versions_wrote(folder)
        change_keys(folder, lambda _: index)

    return damage


def with_index(*of_layers):
    def damage(folder):
        edit_config(folder, kv_index_per_layer=list(of_layers))

    return damage


def other_key_heads(folder):
    edit_config(folder, num_key_value_heads_per_layer=[2, 1, 2])


def no_weight_map(folder):
    (folder / "model.safetensors.index.json").write_text("{}")


def no_json(folder):
    (folder / "config.json").write_text("{")


def no_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_shard, r"is incomplete: model-00002-of-\d+\.safetensors is missing"),
        (truncate_shard, r"model-00002-of-\d+\.safetensors is damaged or cut short"),
        (truncate_header, "is damaged or cut short"),
        (drop_tensor, "the file holds no such tensor"),
        (
            wrong_channels,
            r"config and weights disagree about model\.layers\.0\.mlp\.\S+: the config wants \(.*the file",
        ),
        (too_few_layers, "must list 2 integers from 0, one per layer; got"),
        (wrong_shapes, "must list 3 integers from 0"),
        (other_family, r"config and weights disagree|describes no model"),
        (dense_family, "its model_type is 'llama', allowed are ffprune_llama, .*load a dense model with load_model"),
        (unknown_family, "its model_type is 'ffprune_bloom', allowed are"),
        (
            with_keys(torch.tensor([0, 0, 1])),
            r"kv_index is \[0, 0, 1\], kv_index_per_layer in config\.json says \[0, 1",
        ),
        (with_keys(torch.tensor([0.0, 1.0, 1.0])), r"kv_index must be int64; got torch\.float32"),
        (with_keys_alone(torch.tensor([2, 3, 3])), r"must hold 3 key/value heads 0 to 1 in order, .*; got \[2, 3, 3\]"),
        (with_keys_alone(torch.tensor([1, 1, 1])), r"each at most 2 times; got \[1, 1, 1\]"),
        (with_index([0, 1], [0, 1, 1]), "kv_index_per_layer must list 3 entries, one per layer"),
        (
            with_index([0, 1, 1], None, [0]),
            "no index for layer 1, whose 3 query heads cannot share 2 key/value heads",
        ),
        (with_index([0, 1, 1], [1, 0, 1], [0]), r"layer 1, must hold 3 key/value heads 0 to 1 in order"),
        (other_key_heads, "layer 1, must hold 3 key/value heads 0 to 0 in order"),
        (no_weight_map, "has no weight_map"),
        (no_json, r"config\.json is not JSON"),
        (no_config, "holds no config.json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_folder_gets_a_clear_error(sound, damage, message):
    ff.load_pruned(sound)
    damage(sound)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        ff.load_pruned(sound)
    assert len(str(caught.value).splitlines()) == 1


def test_load_model_checks_pruned_folders_too(sound):
    truncate_shard(sound)
    with pytest.raises(OSError, match="is damaged or cut short"):
        ff.load_model(str(sound))


def test_the_folder_says_nothing_of_this_machine(sound):
    config = (sound / "config.json").read_text()
    assert "ffprune_sdpa" not in config
    assert str(Path.home()) not in config
    shutil.rmtree(sound)
