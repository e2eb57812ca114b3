"""The studies of searches and presets on invented models and curves: what they print, and what ends them early."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import load_script
from safetensors.torch import load_file, save_file
from test_evaluate_scripts import ENDS, failing, run_script

import ffprune_env as ff
from ffprune_env.lm.identity import identity_of_versions


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
def preset_study(monkeypatch, tiny_folder, text_file, tmp_path):
    """The script, with two settings to study, and the words that name a model; its curves are invented."""
    study = load_script("evaluate/preset_study.py")
    surrogate = ff.SurrogateEvaluator.synthetic(n_layers=3)
    names = [f"{unit.name} {unit.kind} {unit.layer} {unit.n_groups} {unit.n_params}" for unit in surrogate.units]

    def invented(args, evaluator, identity):
        arrays = {f"curve_{i}": curve for i, curve in enumerate(surrogate.curves)}
        about = {"about": np.array(study.described(args)), "identity": np.array(json.dumps(identity))}
        np.savez(args.curves, units=np.array(names), **about, **arrays)

    monkeypatch.setattr(study, "measure_curves", invented)
    monkeypatch.setattr(study, "CHANGES", ({}, {"log_std_init": -9.0}))
    model = ("--model", tiny_folder, "--text", text_file, "--seq-len", 64, "--search-windows", 2)
    curves = ("--calibration-windows", 2, "--curve-windows", 2, "--curves", tmp_path / "curves.npz")
    return study, (*model, *curves, "--seeds", 2, "--inits", "ffn-only")


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


def test_curves_are_measured_once_of_the_same_model_text_and_code(tmp_path, monkeypatch, capsys, save_tiny, text_file):
    """A name says where a model or a text was, and not what lies there now."""
    study, model, text = load_script("evaluate/preset_study.py"), save_tiny(), tmp_path / "words.txt"
    text.write_text(text_file.read_text())
    monkeypatch.setattr(study, "CHANGES", ({},))
    curves = tmp_path / "curves.npz"
    words = ("--model", model, "--text", text, "--seq-len", 64, "--search-windows", 2, "--calibration-windows", 2)
    more = ("--curve-windows", 2, "--curves", curves, "--seeds", 1, "--evaluations", 4, "--heads", "single")

    def run(dtype="float32"):
        return run_script("evaluate/preset_study.py", monkeypatch, capsys, *words, *more, "--dtype", dtype)

    assert run()[0] == 0
    content = curves.read_bytes()
    code, out, _ = run()
    assert (code, "default" in out, curves.read_bytes() == content) == (0, True, True)

    def refused(dtype="float32"):
        code, out, err = run(dtype)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        return err

    assert f"has changed from torch.float32 to torch.bfloat16 since {curves} was made" in refused("bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(study, "identity_of_versions", lambda: identity_of_versions() | {"source": "edited"})
        assert f"the source of ffprune has changed since {curves} was made: give another --curves" in refused()
    text.write_text(text_file.read_text().replace("says", "said"))
    assert f"text {text} has changed since {curves} was made" in refused()
    text.write_text(text_file.read_text())
    weights = load_file(model / "model.safetensors")
    save_file({name: 2 * x for name, x in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert f"the weights of {model} have changed since {curves} was made" in refused()
    with np.load(curves) as saved:
        before = {name: saved[name] for name in saved.files if name != "identity"}
    np.savez(curves, **before)
    assert f"{curves} does not say what its curves were measured with: give another --curves" in refused()
