"""What is made of the times of two models, and what becomes of a process that dies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ffprune_env.serving.comparison import compared
from ffprune_env.serving.served import Measured, Timing, in_turns
from ffprune_env.serving.worker import Job

JOB = Job(prompt=100, new_tokens=10, batches=[2], threads=1)


def took(prefill, decode, weights, cache):
    return Measured((Timing("prefill", 2, prefill), Timing("decode", 2, decode)), weights, cache)


def test_ratios_are_taken_round_by_round():
    dense = took((1.0, 2.0, 4.0), (1.0, 1.0, 1.0), 200.0, 8.0)
    pruned = took((0.5, 1.0, 1.0), (1.0, 2.0, 4.0), 150.0, 6.0)
    served = compared("somewhere", JOB, {"dense": dense, "pruned": pruned})
    prefill, decode = served.speeds
    assert (prefill.dense, prefill.pruned) == (2 * 100 / 2.0, 2 * 100 / 1.0)
    assert (prefill.ratio, prefill.low, prefill.high) == (2.0, 2.0, 3.0)
    assert (decode.dense, decode.ratio, decode.low) == (2 * 10 / 1.0, 0.5, 0.375)
    assert (served.weights, served.cache) == (0.75, 0.75)


def test_a_process_that_dies_is_told_by_what_it_said_last(tmp_path):
    with pytest.raises(ValueError, match=r"the process of the pruned model died: .*nowhere"):
        in_turns(Path(sys.executable), "transformers", {"pruned": tmp_path / "nowhere"}, JOB, 1, "wall")
