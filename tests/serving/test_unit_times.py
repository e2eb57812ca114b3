"""Tables of time: between what was timed, never falling, kept once per machine, and what budgets make of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import byte_tokenizer, tiny_model
from hypothesis import given
from hypothesis import strategies as st

import ffprune_env as ff
from ffprune_env.budget.budget import Budget
from ffprune_env.budget.mapping import allocate
from ffprune_env.lm.tiny_families import tiny_of_family
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.run.budget_report import count_budget
from ffprune_env.serving import latency, unit_times
from ffprune_env.serving.backends import backend_of
from ffprune_env.serving.latency import UnitTimes
from ffprune_env.serving.unit_times import NANO, Server, ShapeTimes, interpolated, shapes_of, timed_at
from ffprune_env.serving.worker import Job

MERGES = [("e", "n"), ("1", "2")]  # llama.cpp refuses a tokenizer without any
JOB = Job(prompt=24, new_tokens=8, batches=[1], threads=1)


def ranked(model, **options):
    prunable = PrunableModel(model, **options)
    rng = np.random.default_rng(0)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    return prunable


def server(backend="transformers", **options):
    return Server(backend_of(backend), "f16", JOB, **{"rounds": 2, "clock": "cpu"} | options)


@given(st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_between_what_was_timed_are_lines_that_never_fall(times):
    costs = interpolated((2, 4, 6, 9), [1e6 * x for x in times])
    assert len(costs) == 10
    assert costs[0] == 0
    assert (np.diff(costs) >= 0).all()
    if times == sorted(times):
        found = np.array(costs)[[2, 4, 6, 9]] - costs[2]
        np.testing.assert_allclose(found, 1e6 * (np.array(times) - times[0]), atol=2)


def test_a_line_is_found_again():
    assert interpolated((3, 6, 12), [3000, 6000, 12000]) == tuple(range(0, 12001, 1000))


def test_units_of_one_shape_share_what_is_saved(monkeypatch, tmp_path):
    """A model whose time is known: what the table predicts is what it takes."""
    monkeypatch.setenv("FFPRUNE_CACHE", str(tmp_path))
    prunable = ranked(tiny_model("llama").float())
    per_group = {"attention": 0.004, "ffn": 0.001}

    def seconds(kept):
        groups = sum(per_group[unit.kind] * k for unit, k in zip(prunable.units, kept, strict=True))
        return 0.05 + groups

    whole = [unit.n_groups for unit in prunable.units]
    asked = []

    def write(prunable, kept, *_):
        asked.append(kept)
        return kept

    def beside(self, dense, pruned):
        shares = [seconds(kept) / seconds(whole) for kept in pruned]
        return {"prefill": (seconds(whole), shares), "decode": (2 * seconds(whole), shares)}

    monkeypatch.setattr(unit_times, "save_dense", lambda *_: None)
    monkeypatch.setattr(unit_times, "source_of", lambda *_: None)
    monkeypatch.setattr(unit_times, "_write", write)
    monkeypatch.setattr(Server, "beside", beside)
    times = latency.unit_times(prunable, byte_tokenizer(), server())
    assert len(asked) == sum(len(timed_at(prunable.units[of[0]].n_groups)) for of in shapes_of(prunable.units))
    for name, factor in (("prefill", 1), ("decode", 2), ("latency", 3)):
        measure = times.measure(prunable, name)
        assert measure.dense == pytest.approx(factor * seconds(whole) * NANO, rel=1e-9)
        for seed in range(3):
            scores = np.random.default_rng(seed).normal(size=len(measure.units))
            sparsity = measure.sparsity(Budget.parse([name, "0.75x"]))
            kept = allocate(scores, sparsity, measure.units).kept
            assert measure.of(kept) == pytest.approx(factor * seconds(kept) * NANO, rel=1e-6)
            step = factor * per_group["ffn"] * NANO
            assert 0.75 * measure.dense - step < measure.of(kept) <= 0.75 * measure.dense
    again = latency.unit_times(prunable, byte_tokenizer(), server())
    assert again.measure(prunable, "latency") == times.measure(prunable, "latency")
    assert len(asked) == sum(len(timed_at(prunable.units[of[0]].n_groups)) for of in shapes_of(prunable.units))
    (file,) = (tmp_path / "unit-times").glob("*.json")
    assert json.loads(file.read_text())["about"]["backend"] == "transformers"
    latency.unit_times(prunable, byte_tokenizer(), server(rounds=3))
    assert len(list((tmp_path / "unit-times").glob("*.json"))) == 2


def test_times_of_other_versions_and_of_another_gpu_are_others(monkeypatch):
    prunable = ranked(tiny_model("llama").float())
    here = {"versions": {"transformers": "5"}, "gpu": "H200"}
    monkeypatch.setattr(latency, "versions_of", lambda backend: here["versions"])
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: here["gpu"])

    def found(device, name="transformers"):
        about = latency.provenance_of(prunable, replace(server(name), job=replace(JOB, device=device)))
        return json.dumps({x: about[x] for x in about if x != "job"}, sort_keys=True)

    places = [("cpu", "transformers"), ("cuda:0", "transformers"), ("cuda:0", "llama.cpp")]
    before = [found(*place) for place in places]
    assert "H200" in before[1]
    here["gpu"] = "T4"
    assert [found(*place) == x for place, x in zip(places, before, strict=True)] == [True, False, True]
    here["versions"] = {"transformers": "6"}
    assert [found(*place) == x for place, x in zip(places, before, strict=True)] == [False] * 3


def test_times_that_cannot_be_kept_are_used_all_the_same(monkeypatch, tmp_path, caplog):
    prunable = ranked(tiny_model("llama").float())
    shapes = [ShapeTimes(len(of), (1, 2), {"decode": (0.5, 1.0)}) for of in shapes_of(prunable.units)]
    monkeypatch.setattr(latency, "time_units", lambda *_: ({"decode": 1.0}, shapes))
    monkeypatch.setenv("FFPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("no folder")
    assert latency.unit_times(prunable, byte_tokenizer(), server()) == UnitTimes({"decode": 1.0}, shapes)
    (said,) = caplog.messages
    assert said.startswith("what units take is not kept, and is timed again next time: ")
    monkeypatch.setenv("FFPRUNE_CACHE", str(tmp_path))
    for _ in range(2):  # what was damaged is timed again, and kept
        assert latency.unit_times(prunable, byte_tokenizer(), server()) == UnitTimes({"decode": 1.0}, shapes)
        (kept,) = (tmp_path / "unit-times").glob("*.json")
        assert json.loads(kept.read_text())["dense"] == {"decode": 1.0}
        kept.write_text("{")


def test_a_unit_of_one_group_costs_nothing():
    units = ranked(tiny_model("llama-gqa"), heads="groups").units
    one = [replace(unit, n_groups=1) for unit in units]
    shapes = [ShapeTimes(3, (1,), {"prefill": (1.0,), "decode": (1.0,)}) for _ in shapes_of(one)]
    assert {unit.costs for unit in unit_times.priced(one, shapes, {"prefill": 1.0, "decode": 1.0}, "decode")} == {
        (0, 0)
    }


@pytest.mark.parametrize("backend", [pytest.param("transformers", marks=pytest.mark.slow), "llama.cpp"])
def test_time_is_a_budget_of_a_real_server(backend, monkeypatch, tmp_path):
    if backend == "llama.cpp":
        pytest.importorskip("cyllama")
    monkeypatch.setenv("FFPRUNE_CACHE", str(tmp_path))
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
    prunable = ranked(tiny_of_family("llama", vocab_size=256, **wide).float(), channels_per_group=32, heads="balanced")
    tokenizer = byte_tokenizer(MERGES)
    report = count_budget(Budget.parse(["latency", "0.9x"]), prunable, tokenizer, None, server(backend))
    assert report.measure.dense > 0
    times = UnitTimes({"prefill": 0.001, "decode": 0.002}, [])
    kept = [max(1, unit.n_groups // 2) for unit in prunable.units]
    ff.save_pruned(prunable, kept, tmp_path / "pruned", tokenizer)
    took = latency.served_time(prunable, tokenizer, server(backend), times, "latency", tmp_path / "pruned")
    assert 0 < took < 1.2 * 3_000_000  # never slower than the dense one, but for noise


def test_a_model_so_broken_that_rounding_shows_is_timed_all_the_same(monkeypatch, tmp_path):
    """It is never served; that its logits are not those of memory says nothing of its time."""
    prunable = ranked(tiny_model("llama").float())
    off = lambda *_: (_ for _ in ()).throw(ValueError("its logits are off"))  # noqa: E731
    monkeypatch.setattr("ffprune_env.export.smaller_model._require_same_logits", off)
    kept = [1 for _ in prunable.units]
    with pytest.raises(ValueError, match="its logits are off"):
        ff.save_pruned(prunable, kept, tmp_path / "served")
    ff.save_pruned(prunable, kept, tmp_path / "timed", checked=False)
    assert (tmp_path / "timed" / "model.safetensors").is_file()
