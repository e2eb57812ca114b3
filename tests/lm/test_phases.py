"""No phase of a run is silent: in a log file each has a line when it begins, and one when it ends."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from tiny_runs import SCRIPT, settings

import ffprune_env as ff
from ffprune_env.cli.progress import showing_phases
from ffprune_env.lm import phases
from ffprune_env.lm.phases import listening, phase, windows_size
from ffprune_env.search.samples import Sample, told

PHASES = (
    "loading",
    "reading text",
    "statistics",
    "gradients",
    "scores by surgeon",
    "factors of the calibration",
    "damage curves",
    "search",
    "finalists",
    "measuring uniform",
    "measuring searched, calibrated",
    "calibration in sequence",
    "writing",
    "reading back",
)


def test_a_phase_logs_its_size_when_it_begins_and_its_time_when_it_ends(caplog):
    with caplog.at_level(logging.INFO), phase("damage curves", windows_size((1, 64))):
        assert caplog.messages == ["damage curves: 1 window of 64 tokens ..."]
    assert re.fullmatch(r"damage curves: done in \d+\.\d s", caplog.messages[1])


def test_a_phase_that_fails_does_not_say_that_it_is_done(caplog):
    with caplog.at_level(logging.INFO), contextlib.suppress(ValueError), phase("ranking", "4 units"):
        raise ValueError("broken")
    assert caplog.messages == ["ranking: 4 units ..."]


@pytest.fixture(scope="module")
def log(tiny_folder, text_file, tmp_path_factory):
    """What a run of ``train/ppo.py`` leaves in a log file."""
    run = tmp_path_factory.mktemp("log") / "run"
    command = [sys.executable, str(SCRIPT), *settings(tiny_folder, text_file, run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_phase_that_begins_ends(log):
    begun = [match[1] for line in log if (match := re.search(r"INFO +(.*): .* \.\.\.", line))]
    ended = [match[1] for line in log if (match := re.search(r"INFO +(.*): done in", line))]
    assert sorted(begun) == sorted(ended)
    for name in PHASES:
        assert any(one.startswith(name) for one in begun), name


def test_a_phase_that_takes_long_tells_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr(phases, "_PAUSE_S", 0.0)
    with caplog.at_level(logging.INFO), phase("search", "2 evaluations", 2) as advance:
        advance(note="reward 0.5")
        advance()
    assert caplog.messages[1:3] == ["search: 1 of 2  reward 0.5", "search: 2 of 2  "]
    caplog.clear()
    with caplog.at_level(logging.INFO), phase("recovery", "by the clock") as advance:
        advance(note="half of the time")
    assert caplog.messages[1] == "recovery: 1  half of the time"
    caplog.clear()
    monkeypatch.setattr(phases, "_PAUSE_S", 60.0)
    with caplog.at_level(logging.INFO), phase("search", "2 evaluations", 2) as advance:
        advance(2)
    assert len(caplog.messages) == 2


def test_a_sample_is_told_with_the_windows_that_it_was_measured_on():
    sample = Sample(0, 0.2, 2, *[np.zeros(2)] * 3, 0.2, 20.0, 10.0, 0.5, False, 0.1)
    assert told(sample) == "reward 0.500  PPL 20.00 (dense 10.00) on 2 windows  σ 0.200"


class Heard:
    """Writes down what it is told."""

    def __init__(self):
        self.ended, self.open = [], []

    def begin(self, phase):
        assert phase.depth == len(self.open)
        self.open.append(phase)

    def advance(self, phase):
        assert phase is self.open[-1] or phase in self.open

    def end(self, phase):
        assert phase is self.open.pop()
        self.ended.append(phase)


def test_phases_lie_inside_each_other_and_a_failure_leaves_none_open():
    heard = Heard()
    with listening(heard):
        with phase("outer", ""), phase("inner", ""):
            pass
        with contextlib.suppress(ValueError), phase("broken", ""):
            raise ValueError
        heard.open.clear()
        with phase("again", ""):
            pass
    assert [(x.name, x.depth) for x in heard.ended] == [("inner", 1), ("outer", 0), ("again", 0)]


def test_what_is_counted_comes_to_its_total(tiny_folder, text_file):
    """Every phase of a search that says how many steps it takes takes as many."""
    small = {"seq_len": 64, "search_windows": 2, "final_windows": 2, "curve_windows": 2, "calibration_windows": 4}
    heard = Heard()
    with listening(heard):
        ff.search(tiny_folder, text=str(text_file), test_seq_len=64, test_windows=2, evaluations=8, **small)
    counted = [x for x in heard.ended if x.total]
    assert {x.name for x in counted} >= {
        "statistics", "gradients", "scores by surgeon", "factors of the calibration", "damage curves",
        "improving the start", "search", "calibration in sequence",
    }  # fmt: skip
    assert [(x.name, x.done) for x in counted] == [(x.name, x.total) for x in counted]


def test_the_table_of_times_counts_what_is_inside_once(capsys):
    console = Console(width=80)
    with showing_phases(console) as times:
        with phase("outer", ""), phase("inner", ""):
            pass
        with phase("outer", ""):
            pass
    console.print(times.table())
    shown = capsys.readouterr().out
    assert list(times.seconds) == ["outer"]
    assert "everything else" in shown
    assert "100%" in shown


def test_bars_are_drawn_on_a_terminal():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with showing_phases(console), phase("search", "4 evaluations", 4) as advance, phase("inside", "of it"):
        advance(4, "reward 0.5")
    assert "search: 4 evaluations, 0.0 s" in screen.getvalue()
    assert "inside: of it" not in screen.getvalue()  # a part is no line of its own


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((4, 1024), "4 windows of 1024 tokens"),
        ((1, 2), "1 window of 2 tokens"),
        ((9, 1), "9 openings"),
        ((1, 1), "1 opening"),
    ],
)
def test_text_is_called_what_it_is(shape, size):
    assert windows_size(shape) == size
