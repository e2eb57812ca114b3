"""No phase of a run is silent: in a log file each has a line when it begins, and one when it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys

import pytest
from tiny_runs import SCRIPT, settings

from ffprune_env.lm.phases import phase, windows_size

PHASES = (
    "loading",
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


def test_a_search_that_takes_long_tells_how_far_it_is(ppo_script, caplog):
    class Step:
        reward, ppl, dense_ppl, target_sparsity, n_samples = 0.5, 20.0, 10.0, 0.2, 2

        def __init__(self, step):
            self.step = step

    def told(pause):
        caplog.clear()
        show = ppo_script.log_progress(4, pause)
        for step in range(4):
            show(Step(step))
        return [message[: len("search: 1 of 4")] for message in caplog.messages]

    with caplog.at_level(logging.INFO):
        assert told(pause=0) == [f"search: {i} of 4" for i in (1, 2, 3, 4)]
        assert caplog.messages[0].endswith("reward 0.500  PPL 20.00 (dense 10.00) on 2 windows  σ 0.200")
        assert told(pause=1000) == ["search: 4 of 4"]
