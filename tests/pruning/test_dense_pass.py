"""Calibrations in sequence that share the dense model's pass: the same to the last bit, and nothing is kept."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from conftest import tiny_model
from plain import plain
from test_calibration import ranked
from test_sequential import RESIDUAL

from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.pruning import dense_pass, layer_calls
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.dense_pass import DensePass
from ffprune_env.pruning.sequential import SequentialCalibration


def thinned(units, *, fraction):
    return np.array([max(1, int(unit.n_groups * fraction)) for unit in units])


def weights(calibration):
    return [calibration.weight(i, int(k)) for i, k in enumerate(calibration.kept)]


def assert_same(one, other):
    assert all(torch.equal(x, y) for x, y in zip(weights(one), weights(other), strict=True))


def layer_bytes(shared):
    """What the states of one layer take."""
    return 2 * sum(call.hidden.nbytes for call in shared.calls)


@pytest.mark.parametrize("family", RESIDUAL)
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_calibrations_that_share_a_pass_are_those_made_one_by_one(family, layers):
    prunable, stats, windows = ranked(family)
    first = RidgeCalibration(prunable, stats)
    per_layer = layer_bytes(DensePass(prunable, windows, room=0))
    shared = DensePass(prunable, windows, room=layers * per_layer)
    for fraction in (0.75, 0.5, 0.9):
        kept = thinned(prunable.units, fraction=fraction)
        assert_same(SequentialCalibration(first, kept, shared), SequentialCalibration(first, kept, windows))
        assert shared.remembered == layers
        assert shared.n_bytes == layers * per_layer


def test_what_is_remembered_does_not_run_again(monkeypatch):
    prunable, stats, windows = ranked("llama-gqa")
    first, shared = RidgeCalibration(prunable, stats), DensePass(prunable, windows)
    ran = []
    passage = layer_calls.LayerCalls.passage

    def note(self, number, units, hidden, attended=None):
        ran.append(prunable._is_pruned)
        return passage(self, number, units, hidden, attended)

    monkeypatch.setattr(layer_calls.LayerCalls, "passage", note)
    kept = thinned(prunable.units, fraction=0.5)
    for dense_runs in (3 * len(windows), 0):
        ran.clear()
        SequentialCalibration(first, kept, shared)
        assert ran.count(False) == dense_runs
        assert ran.count(True) == 2 * 3 * len(windows)


@pytest.mark.parametrize("family", ["llama", "llama-gqa", "opt"])
def test_an_attention_whose_input_is_known_runs_no_more_than_its_output_projection(family):
    prunable, _, windows = ranked(family)
    (call,) = layer_calls.layer_calls(prunable.model, [windows])
    units, ran = prunable.layouts[:2], []
    hooks = [x.register_forward_hook(lambda *_: ran.append(1)) for x in (*units[0].inputs, units[0].output)]
    with torch.no_grad():
        attended = call.passage(0, units[:1], call.hidden)
        whole = call.passage(0, units, call.hidden)
        ran.clear()
        again = call.passage(0, units, call.hidden, attended=attended)
    for hook in hooks:
        hook.remove()
    assert len(ran) == 1
    for name in ("inputs", "outputs", "after"):
        assert all(torch.equal(x, y) for x, y in zip(getattr(again, name), getattr(whole, name), strict=True))


def test_a_pass_is_of_one_ranking_of_one_model():
    prunable, stats, windows = ranked("llama")
    shared, kept = DensePass(prunable, windows), thinned(prunable.units, fraction=0.5)
    other, other_stats, _ = ranked("llama")
    with pytest.raises(ValueError, match="another PrunableModel"):
        SequentialCalibration(RidgeCalibration(other, other_stats), kept, shared)
    prunable.rank([np.arange(layout.n_members) for layout in prunable.layouts])
    with pytest.raises(RuntimeError, match="ranked again"):
        SequentialCalibration(RidgeCalibration(prunable, stats), kept, shared)


@pytest.fixture
def evaluator(tokenizer, text_file):
    sizes = {"seq_len": 32, "search_windows": 2, "calibration_windows": 4}
    return build_evaluator(tiny_model("llama"), tokenizer, str(text_file), plain(calibration="sequential", **sizes))


def test_an_evaluator_shares_the_pass_inside_the_context_and_keeps_nothing_of_it_outside(evaluator, monkeypatch):
    made = []

    class Counted(DensePass):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr("ffprune_env.evaluators.final_calibration.DensePass", Counted)
    fractions = (0.75, 0.5, 0.9)
    alone = [evaluator.final_calibration(thinned(evaluator.units, fraction=x)) for x in fractions]
    assert made == []
    with evaluator.sharing_dense_pass():
        for fraction, expected in zip(fractions, alone, strict=True):
            assert_same(evaluator.final_calibration(thinned(evaluator.units, fraction=fraction)), expected)
        assert len(made) == 1
        assert made[0]().remembered == 3
        states = weakref.ref(made[0]()._remembered[1][0][0])
    gc.collect()
    assert made[0]() is None
    assert states() is None


def test_where_memory_runs_out_the_pass_is_given_up_before_the_calibration_is(evaluator, monkeypatch, caplog):
    fit, passes = SequentialCalibration._fit, []

    def fail_beside_a_pass(self, dense, advance):
        fit(self, dense, advance)
        if dense.remembered:
            passes.append(weakref.ref(dense))
            raise torch.OutOfMemoryError
        assert [one() for one in passes] == [None], "the pass takes the room that this needs"

    kept = thinned(evaluator.units, fraction=0.5)
    alone = evaluator.final_calibration(kept)
    evaluator.in_sequence._last = None
    monkeypatch.setattr(SequentialCalibration, "_fit", fail_beside_a_pass)
    with evaluator.sharing_dense_pass():
        assert_same(evaluator.final_calibration(kept), alone)
        assert evaluator.in_sequence.dense_pass is None
    assert caplog.messages == ["out of memory: calibrations in sequence no longer share the dense model's pass"]


def test_no_more_than_half_of_what_is_free_is_taken(monkeypatch):
    free = 1000.0
    monkeypatch.setattr(dense_pass.psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    assert dense_pass._room(torch.device("cpu")) == 500
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 800))
    assert dense_pass._room(torch.device("cuda", 1)) == 300
    assert dense_pass._room(torch.device("meta")) == 0


def test_a_model_in_training_mode_is_calibrated_without_dropout():
    prunable, stats, windows = ranked("opt")
    first, kept = RidgeCalibration(prunable, stats), thinned(prunable.units, fraction=0.5)
    calm = SequentialCalibration(first, kept, windows)
    for module in prunable.model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    prunable.model.train()
    assert_same(SequentialCalibration(first, kept, windows), calm)
    assert prunable.model.training
