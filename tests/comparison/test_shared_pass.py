"""Cells that are calibrated in sequence share the dense model's pass: the same figures to the last bit, for less."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from conftest import tiny_model
from tiny_subject import subject_of

from ffprune_env.comparison.contest import with_room
from ffprune_env.comparison.rebuilt import rebuild_and_measure
from ffprune_env.evaluators.final_calibration import FinalCalibration
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.pruning.dense_pass import DensePass

METHODS = ("uniform", "ffn-only", "flap", "flap-bias", "svd-llm", "evolution")


@pytest.fixture
def passes(monkeypatch):
    """The dense model's passes that were made: how many layers each could remember."""
    made = []
    real = DensePass.__init__

    def note(self, *args, **settings):
        real(self, *args, **settings)
        made.append(settings.get("room", "half of what is free"))

    monkeypatch.setattr(DensePass, "__init__", note)
    return made


def cells_of(out):
    """Every cell but for the time that it took."""
    untimed = {"seconds": 0, "calibration_seconds": 0}
    return {file.name: json.loads(file.read_text()) | untimed for file in (out / "cells").iterdir()}


def test_cells_share_a_pass_and_are_the_same_to_the_last_bit(compare, passes, monkeypatch):
    flags = ("--methods", *METHODS, "--sparsity", "0.2", "0.3")
    assert compare(*flags)[0] == 0
    # One before every method that rebuilds a copy, whose memory it would take, and one after the last of them.
    assert passes == ["half of what is free"] * 3
    passes.clear()
    alone = compare.out.with_name("alone")
    monkeypatch.setattr(LMEvaluator, "sharing_dense_pass", lambda self: nullcontext())
    assert compare(*flags, out=alone)[0] == 0
    assert passes == [0] * 8  # three heuristics and one search, at two sparsities
    assert cells_of(compare.out) == cells_of(alone)


@pytest.fixture
def shared(windows):
    """A subject that is calibrated in sequence, with a pass that is shared."""
    subject = subject_of(tiny_model("llama-gqa"), windows)
    evaluator = subject.evaluator
    evaluator.in_sequence = FinalCalibration(evaluator.calibration, evaluator.texts["calibration"])
    with subject.evaluator.sharing_dense_pass():
        subject.evaluator.final_calibration([unit.n_groups - 1 for unit in subject.evaluator.units])
        assert subject.evaluator.in_sequence.dense_pass is not None
        yield subject


def test_who_rebuilds_a_copy_has_the_memory_that_was_shared(shared):
    rebuild_and_measure(shared, "slicegpt", 0.3)
    assert shared.evaluator.in_sequence.dense_pass is None


def test_where_memory_runs_out_beside_the_pass_it_is_given_up_and_the_work_done_once_more(shared, caplog):
    calls = []

    def work():
        calls.append(shared.evaluator.in_sequence.dense_pass)
        if calls[-1] is not None:
            raise torch.OutOfMemoryError
        return "done"

    assert with_room(shared, work) == "done"
    assert len(calls) == 2
    assert caplog.messages == ["out of memory beside the dense model's pass: once more without it"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_what_another_try_would_not_help_is_told(shared, error):
    """Memory runs out though nothing is shared, or something else is wrong."""
    calls = []

    def work():
        calls.append(1)
        if error is torch.OutOfMemoryError:
            shared.evaluator.give_up_dense_pass()
        raise error("no")

    with pytest.raises(error, match="no"):
        with_room(shared, work)
    assert len(calls) == 1
