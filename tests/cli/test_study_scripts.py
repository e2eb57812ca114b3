"""The studies of searches and presets on invented models and curves: what they print, and what ends them early."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import load_script
from test_evaluate_scripts import ENDS, failing, run_script

import ffprune_env as ff


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "fisher"), "--methods takes searches"),
        (("--sparsity", "0.9"), "--sparsity takes numbers between 0 and 0.8"),
        (("--seeds", "0"), "--seeds"),
    ],
)
def test_searches_are_studied_only_where_they_can_be(monkeypatch, capsys, words, said):
    code, _, err = run_script("evaluate/search_study.py", monkeypatch, capsys, *words)
    assert code == 2
    assert said in err


def test_searches_are_studied_on_invented_models(monkeypatch, capsys, tmp_path):
    """More measurements find more of the gain, noise takes some of it, and one search answers several sparsities."""
    shares = {}
    for name, words in {
        "one": ("--methods", "ppo", "cma-es", "--budgets", 64, 512),
        "noisy": ("--methods", "ppo", "--budgets", 512, "--noise", 0.5),
        "all": ("--methods", "policy", "--budgets", 256, "--sparsity", 0.2, 0.4, "--start", "none"),
    }.items():
        file = tmp_path / f"{name}.json"
        flags = ("--layers", 6, "--seeds", 2, "--json", file)
        assert run_script("evaluate/search_study.py", monkeypatch, capsys, *flags, *words)[0] == 0
        for row in json.loads(file.read_text())["shares"]:
            shares[name, row["method"], row["budget"]] = np.mean(row["shares"])
    assert shares["one", "ppo", 512] > shares["one", "ppo", 64] > 0.3
    assert 0.9 < shares["one", "ppo", 512] < 1
    assert shares["one", "cma-es", 512] > 0.8
    assert shares["noisy", "ppo", 512] < shares["one", "ppo", 512]
    assert shares["all", "policy", 256] > 0.8


@pytest.mark.parametrize(("error", "exit_code"), ENDS)
def test_searches_that_were_studied_are_printed_whatever_comes_then(error, exit_code, monkeypatch, capsys, tmp_path):
    script, file = load_script("evaluate/search_study.py"), tmp_path / "x.json"
    monkeypatch.setattr(script, "answers", failing(script.answers, 3, error))
    flags = ("--methods", "random", "evolution", "--budgets", 64, 128, "--layers", 4, "--seeds", 2, "--json", file)
    code, out, err = run_script("evaluate/search_study.py", monkeypatch, capsys, *flags)
    assert (code, len(err.splitlines())) == (exit_code, 1)
    whole, part = json.loads(file.read_text())["shares"]
    assert [len(x["shares"]) for x in (whole, part)] == [2, 1]
    (row,) = (line for line in out.splitlines() if line.startswith("│"))  # none of 128 measurements
    assert [word.strip() for word in row.strip("│").split("│")] == [
        "64",
        f"{np.mean(whole['shares']):.2f}",
        f"{part['shares'][0]:.2f} (1 of 2)",
    ]


@pytest.fixture
def preset_study(monkeypatch, tmp_path):
    """The script, with two settings to study, and the words that name curves of an invented model."""
    study = load_script("evaluate/preset_study.py")
    surrogate = ff.SurrogateEvaluator.synthetic(n_layers=3)
    arrays = {f"curve_{i}": curve for i, curve in enumerate(surrogate.curves)}
    names = [f"{unit.name} {unit.kind} {unit.layer} {unit.n_groups} {unit.n_params}" for unit in surrogate.units]
    about = study.described(study.Args(text="python-docs"))
    np.savez(tmp_path / "curves.npz", units=np.array(names), about=np.array(about), **arrays)
    monkeypatch.setattr(study, "CHANGES", ({}, {"log_std_init": -9.0}))
    return study, ("--curves", tmp_path / "curves.npz", "--seeds", 2, "--inits", "ffn-only")


@pytest.mark.parametrize(("error", "exit_code"), ENDS)
def test_presets_that_were_studied_are_printed_whatever_comes_then(error, exit_code, preset_study, monkeypatch, capsys):
    study, arguments = preset_study
    monkeypatch.setattr(study, "ppo", failing(study.ppo, 3, error))
    code, out, err = run_script("evaluate/preset_study.py", monkeypatch, capsys, *arguments, "--evaluations", 16)
    assert (code, len(err.splitlines())) == (exit_code, 1)
    default, still = (line.split("│")[2] for line in out.splitlines() if line.startswith("│"))
    assert ("(" in default, "seeds" in default, "1 of 2 seeds)" in still) == (True, False, True)


def test_presets_are_studied_on_curves(preset_study, monkeypatch, capsys, tmp_path):
    _, arguments = preset_study
    code, out, _ = run_script("evaluate/preset_study.py", monkeypatch, capsys, *arguments)
    assert code == 0
    default, still = (float(line.split("│")[2].split()[0]) for line in out.splitlines() if "(" in line and "│" in line)
    assert default > 20  # percent of the damage that could be removed
    assert abs(still) < default / 2  # a policy that hardly explores stays where it starts
    for other in (("--criterion", "wanda"), ("--data-dir", tmp_path)):
        code, _, err = run_script("evaluate/preset_study.py", monkeypatch, capsys, *arguments, *other)
        assert (code, "holds curves of another model, text or setting: give another --curves" in err) == (2, True)
