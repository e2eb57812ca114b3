"""What figures depend on is told apart by what it is, wherever it lies."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import tiny_model

from ffprune_env.comparison.folder import BEFORE
from ffprune_env.lm.identity import (
    _BEFORE,
    ChangedError,
    identity_of_model,
    identity_of_texts,
    identity_of_versions,
    require_same,
    source_digest,
)
from ffprune_env.run.config import _ADDED


def last_bit(model):
    model.lm_head.weight.data.view(torch.int64)[-1, -1] ^= 1


def two_rows(model):
    weight = model.model.layers[1].mlp.down_proj.weight.data
    weight[[3, 5]] = weight[[5, 3]]


def two_columns(model):
    weight = model.model.layers[0].self_attn.o_proj.weight.data
    weight[:, [0, 31]] = weight[:, [31, 0]]


def two_tensors(model):
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.weight, mlp.up_proj.weight = mlp.up_proj.weight, mlp.gate_proj.weight


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (last_bit, torch.float64),
        *(
            (change, dtype)
            for change in (two_rows, two_columns, two_tensors)
            for dtype in (torch.float32, torch.bfloat16)
        ),
    ],
)
def test_any_change_of_weights_is_seen(change, dtype):
    model = tiny_model("llama-gqa").to(dtype)
    before = identity_of_model(model)
    assert before == identity_of_model(tiny_model("llama-gqa").to(dtype))
    change(model)
    after = identity_of_model(model)
    assert [name for name in before if before[name] != after[name]] == ["weights"]


def test_odd_sizes_and_strides_and_buffers_count():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = tiny_model("llama").config
            self.odd = torch.nn.Parameter(torch.arange(21, dtype=torch.bfloat16).view(3, 7))
            self.turned = torch.nn.Parameter(torch.arange(20.0).view(4, 5).T)
            self.inner = torch.nn.Parameter(torch.arange(9, dtype=torch.float16)[1:8])
            self.number = torch.nn.Parameter(torch.tensor(1.5))
            self.empty = torch.nn.Parameter(torch.empty(0, 3))
            self.register_buffer("stored", torch.tensor([True, False, True]))

    digests = {identity_of_model(Odd())["weights"]}
    for name in ("odd", "turned", "inner", "number", "stored"):
        changed = Odd()
        tensor = dict(changed.named_parameters(), stored=changed.stored)[name].data
        tensor.fill_(0 if name == "stored" else 7.25)
        digests.add(identity_of_model(changed)["weights"])
    assert len(digests) == 6


def test_config_dtype_and_code_have_names_of_their_own():
    model = tiny_model("llama-gqa")
    before = identity_of_model(model)
    model.config.rms_norm_eps = 1e-3
    model.config._name_or_path = "elsewhere"
    after = identity_of_model(model)
    assert [name for name in before if before[name] != after[name]] == ["config"]
    after = identity_of_model(tiny_model("llama-gqa").float())
    assert {name for name in before if before[name] != after[name]} == {"dtype", "weights"}
    own = tiny_model("llama-gqa")
    own.model.norm = torch.nn.Sequential()
    own.model.norm.__class__ = type("Norm", (torch.nn.Sequential,), {"__module__": __name__})
    assert identity_of_model(own)["code"] != before["code"]


@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_streamed_model_is_the_same_as_a_resident_one(where, tmp_path):
    wanted = identity_of_model(tiny_model("llama-gqa").float())
    model = tiny_model("llama-gqa").float()
    if where == "host":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, tmp_path, torch.device("cpu"))
    assert any(parameter.is_meta for parameter in model.parameters())
    assert identity_of_model(model) == wanted
    changed = tiny_model("llama-gqa").float()
    two_rows(changed)
    cpu_offload(changed, torch.device("cpu"))
    assert identity_of_model(changed)["weights"] != wanted["weights"]


def test_texts_are_their_tokens(windows):
    before = identity_of_texts({"search": windows, "test": windows})
    assert before["search text"] == before["test text"]
    other = windows.clone()
    other[-1, -1] += 1
    after = identity_of_texts({"search": other, "test": windows.flatten()[None]})
    assert len({*before.values(), *after.values()}) == 3


def test_versions_tell_code_apart_that_has_one_version(tmp_path):
    versions = identity_of_versions()
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert set(versions) == {"ffprune", "source", "torch", "transformers"}
    (tmp_path / "a" / "comparison" / "report").mkdir(parents=True)
    (tmp_path / "a" / "search.py").write_text("STEP = 0.1\n")
    (tmp_path / "a" / "comparison" / "report" / "table.py").write_text("WIDTH = 80\n")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "comparison" / "report" / "table.py").write_text("WIDTH = 90\n")
    (tmp_path / "b" / "cli" / "scripts").mkdir(parents=True)
    (tmp_path / "b" / "cli" / "scripts" / "ppo.py").write_text("# a wheel holds it there\n")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c" / "search.py").write_text("STEP = 0.2\n")
    one, same, other = (source_digest(tmp_path / name) for name in "abc")
    assert one == same != other


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("weights", "the weights of m have changed since runs/x was begun: start anew"),
        ("config", "the config of m has changed since"),
        ("dtype", "dtype of m has changed from old to new since"),
        ("search text", "the search text a.txt has changed since"),
        ("finalists text", "the text for finalists a.txt has changed since"),
        ("test text", "the test text b.txt has changed since"),
        ("source", "the source of ffprune has changed since"),
        ("transformers", "transformers has changed from old to new since"),
    ],
)
def test_a_difference_is_named_in_one_line(name, says):
    same = {"torch": "1"}
    texts = {"search": "a.txt", "finalists": "a.txt", "test": "b.txt"}
    since = ("runs/x was begun", "start anew", "m", texts)
    require_same({**same, name: "new", "more": "is known"}, {**same, name: "new"}, *since)
    with pytest.raises(ChangedError, match=f"^{re.escape(says)}"):
        require_same({**same, name: "old"}, {**same, name: "new"}, *since)
    with pytest.raises(ChangedError, match=r"^nothing is known of the "):
        require_same(same, {**same, name: "new"}, *since)


@pytest.mark.slow
def test_it_costs_under_a_second_for_the_default_model():
    import time

    import ffprune_env as ff

    model, _ = ff.load_model("smollm2-135m")
    identity_of_model(model)  # the first reads the weights from disk, as the first forward pass does otherwise
    started = time.perf_counter()
    identity_of_model(model)
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} s")
    assert seconds < 1


def test_records_that_are_older_than_a_setting_say_what_was_done_before_it():
    """What a config and a comparison of before are given is what their records stand for."""
    late = {name: value for name, _, value in _ADDED if value is not None}
    assert {name: json.dumps(value) for name, value in late.items()} == {
        name.removeprefix("--").replace("-", "_"): value for name, value in _BEFORE.items()
    }
    assert {name: value for name, value in BEFORE.items() if name in late} == {
        name: value
        for name, value in late.items()
        if name != "bos"  # a manifest has it
    }
