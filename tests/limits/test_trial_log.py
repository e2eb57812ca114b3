"""What was measured for a limit is found again, by who asks for the same; never by who asks for something else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ffprune_env.limits.trial_log import Measured, TrialLog

IDENTITY = {"weights": "a", "limit text": "b"}
KEPT = np.array([3, 1, 4])


@pytest.fixture
def file(tmp_path):
    return tmp_path / "limit.jsonl"


def measured(n=8, seed=0, calibration="sequential"):
    return Measured(calibration, np.random.default_rng(seed).normal(size=n))


def assert_same(found, expected):
    assert found.calibration == expected.calibration
    np.testing.assert_array_equal(found.differences, expected.differences)


def test_what_was_measured_is_found_to_the_last_digit_in_this_process_and_the_next(file):
    log, one, rough = TrialLog(file, IDENTITY), measured(), measured(seed=1, calibration="ridge")
    log.note(KEPT, True, one)
    log.note(KEPT, False, rough)
    for known in (log, TrialLog(file, dict(reversed(IDENTITY.items())))):
        assert_same(known.find(KEPT.copy(), True), one)
        assert_same(known.find(KEPT, False), rough)
        assert known.find(KEPT + 1, True) is None


@pytest.mark.parametrize("other", [{"weights": "c"}, {"limit text": "c"}, {"more": "c"}])
def test_what_was_measured_of_something_else_is_not_found_and_not_lost(file, other):
    TrialLog(file, IDENTITY).note(KEPT, True, measured())
    log = TrialLog(file, IDENTITY | other)
    assert log.find(KEPT, True) is None
    log.note(KEPT, True, measured(seed=1))
    assert_same(TrialLog(file, IDENTITY).find(KEPT, True), measured())
    assert_same(TrialLog(file, IDENTITY | other).find(KEPT, True), measured(seed=1))


def test_a_line_that_was_cut_off_costs_no_other(file):
    log = TrialLog(file, IDENTITY)
    log.note(KEPT, True, measured())
    log.note(KEPT + 1, True, measured(seed=1))
    file.write_bytes(file.read_bytes()[:-20])
    log = TrialLog(file, IDENTITY)
    assert log.find(KEPT + 1, True) is None
    log.note(KEPT + 2, True, measured(seed=2))
    log.note(KEPT + 3, True, measured(seed=3))
    log = TrialLog(file, IDENTITY)
    for more in (0, 2, 3):
        assert_same(log.find(KEPT + more, True), measured(seed=more))


@pytest.mark.parametrize("line", ["", "[]", "{}", "null", '{"of": 1}', "\x00"])
def test_a_line_that_is_none_is_not_looked_at(file, line):
    file.write_text(line + "\n")
    log = TrialLog(file, IDENTITY)
    log.note(KEPT, True, measured())
    assert_same(TrialLog(file, IDENTITY).find(KEPT, True), measured())


def test_a_model_that_collapsed_is_found_as_one(file):
    """Any reader of JSON takes the file, which has no word for what is not finite."""
    TrialLog(file, IDENTITY).note(KEPT, True, Measured("ridge", np.array([0.5, math.nan, math.inf, 1.0])))
    found = TrialLog(file, IDENTITY).find(KEPT, True)
    assert found.differences.tolist() == [0.5, math.inf, math.inf, 1.0]
    json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
