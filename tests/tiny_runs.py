"""Searches of a tiny model that take a second, and what they leave."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "train" / "ppo.py"
CHANGES = ("seconds", "cost", "model")  # all that may differ: the last is where it was loaded from


def settings(tiny_folder, text_file, run, **changes):
    flags = {
        "model": tiny_folder, "text": text_file, "seq-len": 64, "search-windows": 2, "final-windows": 2,
        "test-windows": 2, "calibration-windows": 2, "curve-windows": 2, "test-seq-len": 64,
        "evaluations": 12, "rollout": 4, "heads": "single", "run": run,
    }  # fmt: skip
    return [word for name, value in (flags | changes).items() for word in (f"--{name}", str(value))]


def run_main(ppo, arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train/ppo.py", *map(str, arguments)])
        return ppo.main()


def samples_of(run):
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CHANGES} for line in lines]


def best_of(run):
    best = json.loads((run / "best.json").read_text())
    return {name: value for name, value in best.items() if name not in CHANGES}


def assert_same(run, whole):
    assert samples_of(run) == samples_of(whole)
    assert best_of(run) == best_of(whole)
    policies = [(folder / "checkpoints" / "policy.safetensors").read_bytes() for folder in (run, whole)]
    assert policies[0] == policies[1]


def cut_off(whole, run, n_bytes):
    """What a kill leaves while ``samples.jsonl`` has ``n_bytes``."""
    shutil.copytree(whole, run)
    for file in ("best.json", "model", "plots"):
        path = run / file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    log = run / "samples.jsonl"
    log.write_bytes(log.read_bytes()[:n_bytes])
