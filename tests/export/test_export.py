"""Pruned checkpoints: what they compute, how they load, and what a damaged one gets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ffprune_env as ff
from ffprune_env.export import folder as export
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


@pytest.fixture(scope="module", params=WRITTEN)
def written(request, tmp_path_factory):
    """A calibrated pruned model on disk, with the logits and the greedy continuation it had in memory."""
    prunable, calibration, kept = ranked(request.param)
    folder = tmp_path_factory.mktemp("written") / request.param
    with prunable.pruned(kept, calibration) as model:
        expected = logits(model, PROMPT)
        continued = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=12, do_sample=False)
    ff.save_pruned(prunable, kept, folder, tokenizer=byte_tokenizer(), calibration=calibration)
    return folder, prunable, kept, expected, continued


def test_what_is_loaded_computes_what_was_saved(written):
    folder, prunable, kept, expected, _ = written
    model = ff.load_pruned(folder)
    assert model.dtype == torch.float64
    assert not model.training
    torch.testing.assert_close(logits(model, PROMPT), expected, rtol=0, atol=1e-9)
    assert sum(p.numel() for p in model.parameters()) == prunable.params(kept)
    stored = load_file(folder / "model.safetensors")
    heads, channels = kept[0::2].tolist(), kept[1::2].tolist()
    assert model.config.num_attention_heads_per_layer == heads
    assert model.config.intermediate_size_per_layer == channels
    head_dim = prunable.layouts[0].width
    for i, layer in enumerate(model.get_decoder().layers):
        assert layer.self_attn.q_proj.out_features == heads[i] * head_dim
        assert (layer.fc2 if hasattr(layer, "fc2") else layer.mlp.down_proj).in_features == channels[i]
    weights = sum(t.numel() for name, t in stored.items() if not name.endswith("kv_index"))
    assert weights == prunable.params(kept)  # a shared embedding is written once


def test_plain_auto_classes_load_it_without_trust(written):
    folder, _, _, expected, _ = written
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 3
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__ == "ffprune_env.modeling.modeling_ffprune"
    torch.testing.assert_close(logits(model, PROMPT), expected, rtol=0, atol=1e-9)
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == byte_tokenizer()("abc")["input_ids"]
    named, _ = ff.load_model(str(folder), dtype="float32")
    torch.testing.assert_close(logits(named, PROMPT), expected.float(), rtol=0, atol=1e-3)


def test_generation_uses_the_cache(written):
    folder, _, _, _, continued = written
    model = ff.load_pruned(folder)
    mask = torch.ones_like(PROMPT)
    for cache in (True, False):
        again = model.generate(PROMPT, attention_mask=mask, max_new_tokens=12, do_sample=False, use_cache=cache)
        assert torch.equal(again, continued)
    static = model.generate(
        PROMPT, attention_mask=mask, max_new_tokens=12, do_sample=False, cache_implementation="static"
    )
    assert torch.equal(static, continued)


def test_padding_does_not_change_what_is_generated(written):
    folder, _, _, _, continued = written
    model = ff.load_pruned(folder)
    short, long = PROMPT[:, :3], PROMPT
    padded = torch.cat([torch.cat([torch.zeros(1, 2, dtype=torch.int64), short], 1), long])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    both = model.generate(padded, attention_mask=mask, max_new_tokens=12, do_sample=False)
    alone = model.generate(short, attention_mask=torch.ones_like(short), max_new_tokens=12, do_sample=False)
    assert torch.equal(both[0, 5:], alone[0, 3:])
    assert torch.equal(both[1], continued[0])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_kernel_can_be_chosen(written, implementation):
    folder, _, _, expected, _ = written
    chosen = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation)
    switched = ff.load_pruned(folder)
    switched.set_attn_implementation(implementation)
    for model in (chosen, switched):
        assert implementation in model.config._attn_implementation
        torch.testing.assert_close(logits(model, PROMPT), expected, rtol=0, atol=1e-6)  # eager takes softmax in float32


def test_flash_attention_is_refused_where_keys_are_shared(tmp_path):
    prunable, _, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out")
    model = ff.load_pruned(tmp_path / "out")
    with pytest.raises(ValueError, match="attention 'flash_attention_2' cannot read keys by index"):
        model.set_attn_implementation("flash_attention_2")
    with prunable.pruned(kept) as expected:
        torch.testing.assert_close(logits(model, PROMPT), logits(expected, PROMPT), rtol=0, atol=1e-9)


def test_layers_that_lost_no_query_heads_run_as_they_always_did(tmp_path):
    prunable, calibration, kept = ranked("llama-gqa")
    kept[2] = prunable.units[2].n_groups
    ff.save_pruned(prunable, kept, tmp_path / "out", calibration=calibration)
    model = ff.load_pruned(tmp_path / "out")
    layers = model.model.layers
    assert [hasattr(layer.self_attn, "kv_index") for layer in layers] == [True, False, False]
    assert [layer.self_attn.num_key_value_groups for layer in layers] == [1, 2, 1]
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with prunable.pruned(kept, calibration) as expected:
            torch.testing.assert_close(logits(model, PROMPT), logits(expected, PROMPT), rtol=0, atol=1e-6)


def test_saving_again_round_trips(written, tmp_path):
    folder, _, _, expected, _ = written
    model = ff.load_pruned(folder)
    model.save_pretrained(tmp_path / "again")
    again = ff.load_pruned(tmp_path / "again")
    assert torch.equal(logits(again, PROMPT), logits(model, PROMPT))
    torch.testing.assert_close(logits(again, PROMPT), expected, rtol=0, atol=1e-9)
    for name in (*(path.name for path in folder.glob("*.py")), "config.json"):
        assert (tmp_path / "again" / name).read_text() == (folder / name).read_text()


def test_without_calibration_and_in_original_order(tmp_path):
    prunable, _, kept = ranked("llama")
    groups = prunable.kept_groups(kept)
    dense = {name: p.detach().clone() for name, p in tiny_model("llama").state_dict().items()}
    ff.save_pruned(prunable, kept, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(stored[name], dense[name][:, groups[3]])
    rows = (groups[2][:, None] * 8 + np.arange(8)).ravel()
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(stored[name], dense[name][rows])


FRESH = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
tokens = torch.tensor([[5, 17, 23, 200, 3]])
for folder in sys.argv[1:]:
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == [64, 65, 66]
    assert len(AutoConfig.from_pretrained(folder).num_attention_heads_per_layer) == 3
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError as error:
        assert "ignore_mismatched_sizes" in str(error)
    else:
        raise AssertionError("the dense model took the weights of a smaller one")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True)
        states = output.hidden_states[-1]
        for other in (base, classifier.base_model):
            torch.testing.assert_close(other(tokens).last_hidden_state, states, rtol=0, atol=1e-9)
    torch.save(output.logits, folder + ".logits")
    model.save_pretrained(folder + ".again")
assert not any(name.startswith("ffprune_env") for name in sys.modules), "ffprune_env was imported"
"""


def run_fresh(code, *arguments, cwd):
    """Runs Python code in a process of its own, outside the repository, with a standard input that says nothing."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    silent, open_end = os.pipe()
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, stdin=silent)
    finally:
        os.close(silent)
        os.close(open_end)


def test_a_process_without_ffprune_loads_it_and_saves_it_again(tmp_path):
    """Tokenizer and config need no code and ask nothing; the model without trust is refused, and with it is right."""
    expected = {}
    for family in WRITTEN:
        prunable, calibration, kept = ranked(family)
        ff.save_pruned(prunable, kept, tmp_path / family, byte_tokenizer(), calibration)
        with prunable.pruned(kept, calibration) as model:
            expected[tmp_path / family] = logits(model, PROMPT)
    done = run_fresh(FRESH, *expected, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "custom code" not in done.stdout
    for folder, wanted in expected.items():
        torch.testing.assert_close(torch.load(f"{folder}.logits"), wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits(ff.load_pruned(f"{folder}.again"), PROMPT), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", WRITTEN)
def test_the_file_names_the_dense_family_and_all_else_the_pruned_one(tmp_path, family):
    prunable, _, kept = ranked(family)
    ff.save_pruned(prunable, kept, tmp_path / "out", byte_tokenizer())
    file = tmp_path / "out" / "config.json"
    dense_family = prunable.model.config.model_type
    assert json.loads(file.read_text())["model_type"] == dense_family
    for _ in range(2):  # as it is written, and as older versions did
        assert AutoConfig.from_pretrained(tmp_path / "out").model_type == f"ffprune_{dense_family}"
        assert ff.load_pruned(tmp_path / "out").config.model_type == f"ffprune_{dense_family}"
        assert type(ff.load_model(str(tmp_path / "out"))[0]) is type(ff.load_pruned(tmp_path / "out"))
        edit_config(tmp_path / "out", model_type=f"ffprune_{dense_family}")


PLAIN = "import sys\nfrom transformers import AutoModelForCausalLM\nAutoModelForCausalLM.from_pretrained(sys.argv[1])"


@pytest.mark.parametrize(
    "first",
    [
        "import transformers, ffprune_env",
        "from transformers import LlamaModel\nimport ffprune_env",
        "import ffprune_env\nffprune_env.register_auto_classes()",
        "import ffprune_env, transformers\nffprune_env.PrunableModel",
        "import transformers, ffprune_env\nffprune_env.register_auto_classes()\nffprune_env.LMEvaluator",
    ],
    ids=["transformers-first", "models-first", "on-demand", "name-after", "twice"],
)
def test_auto_classes_load_it_once_they_know_it(tmp_path, first):
    prunable, _, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out")
    done = run_fresh(f"{first}\n{PLAIN}", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_loads_a_model_registers_the_pruned_families(tmp_path):
    prunable, _, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out", byte_tokenizer())
    for load in ("load_pruned(sys.argv[1])", "load_model(sys.argv[1], device='cpu')"):
        done = run_fresh(f"import sys, ffprune_env\nffprune_env.{load}\n{PLAIN}", tmp_path / "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_importing_leaves_the_finders_of_modules_alone(tmp_path):
    code = "import sys\nbefore = list(sys.meta_path)\nimport ffprune_env\nassert sys.meta_path == before"
    assert run_fresh(code, cwd=tmp_path).returncode == 0
    code = f"import ffprune_env\n{PLAIN}"  # not registered: the dense architecture, whose sizes differ
    prunable, _, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out")
    assert "ignore_mismatched_sizes" in run_fresh(code, tmp_path / "out", cwd=tmp_path).stderr


def test_torch_compile_computes_the_same(written):
    folder, _, _, expected, _ = written
    model = ff.load_pruned(folder)
    compiled = torch.compile(
        model, backend="aot_eager", fullgraph=True
    )  # the whole graph is captured, not its code made
    torch.testing.assert_close(logits(compiled, PROMPT, use_cache=False), expected, rtol=0, atol=1e-9)


def test_generation_can_be_compiled(tmp_path):
    prunable, calibration, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out", calibration=calibration)
    model = ff.load_pruned(tmp_path / "out")
    settings = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(PROMPT, **settings)
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    assert torch.equal(model.generate(PROMPT, cache_implementation="static", **settings), expected)


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


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


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
