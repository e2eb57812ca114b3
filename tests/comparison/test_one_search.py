"""One search for several sparsities, and starts, in a comparison."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_model
from tiny_subject import subject_of

from ffprune_env.comparison.contest import search_and_measure
from ffprune_env.comparison.plan import named_methods
from ffprune_env.methods.ablations import ABLATIONS
from ffprune_env.methods.registry import METHODS
from ffprune_env.search.meter import Meter
from ffprune_env.search.problem import Problem


def searches_of(monkeypatch):
    """The targets of every search by PPO from now on."""
    module, targets = sys.modules["ffprune_env.methods.ppo"], []
    run_search = module.run_search

    def count(settings, *arguments, **named):
        targets.append(settings.targets)
        return run_search(settings, *arguments, **named)

    monkeypatch.setattr(module, "run_search", count)
    return targets


def test_one_search_fills_the_cells_of_all_its_sparsities(windows, monkeypatch):
    """Each pays its share of the budget of all; a comparison that goes on runs the search again, and finds the same."""
    sparsities, evaluations = (0.2, 0.3, 0.4), 20
    searches = searches_of(monkeypatch)

    def ask(subject, sparsity, seed=1):
        return search_and_measure(subject, "policy", METHODS["policy"], sparsity, seed, evaluations)

    subject = replace(subject_of(tiny_model("llama-gqa"), windows), targets=sparsities)
    cells = [ask(subject, sparsity) for sparsity in sparsities]
    assert searches == [sparsities]
    assert [cell.settings["targets"] for cell in cells] == [[*sparsities]] * 3
    for name in ("evaluations", "tokens", "tokens_seen", "seconds", "candidates"):
        assert len({getattr(cell, name) for cell in cells}) == 1
    spent = sum(cell.evaluations for cell in cells)
    assert 0.5 * 3 * evaluations < spent <= 3 * evaluations + 1e-9
    assert cells[0].tokens == round(cells[0].evaluations * windows.numel())
    evaluator = subject.evaluator
    evaluator.forget()
    problem = Problem.of(evaluator, 0.2, evaluations=3 * evaluations, seed=1, targets=sparsities)
    found = METHODS["policy"].answer_all(problem)
    assert problem.meter.spent == pytest.approx(spent * evaluator.max_samples)
    assert problem.meter.seen * windows.shape[1] == pytest.approx(sum(cell.tokens_seen for cell in cells), abs=1.5)
    for cell in cells:
        assert cell.kept == found[cell.target_sparsity].allocation.kept.tolist()
        assert cell.sparsity >= cell.target_sparsity
        tokens = [at for at, _ in cell.trace]
        assert tokens == sorted(tokens)
        assert tokens[-1] == cell.tokens
        assert cell.trace[-1][1] == cell.search_ppl == evaluator.measure(np.array(cell.kept), evaluator.max_samples)
    searches.clear()
    later = replace(subject_of(tiny_model("llama-gqa"), windows), targets=sparsities)
    untimed = {"seconds": 0, "calibration_seconds": 0}
    assert replace(ask(later, 0.3), **untimed) == replace(cells[1], **untimed)
    ask(later, 0.3, seed=2)
    ask(replace(later, targets=(0.3,)), 0.3)
    assert searches == [sparsities, sparsities, (0.3,)]


def test_policy_goes_on_after_a_cut_and_other_sparsities_are_another_search(compare, monkeypatch):
    flags, cells = ("--methods", "uniform", "policy", "--sparsity"), compare.out / "cells"
    searches = searches_of(monkeypatch)
    code, out, err = compare(*flags, "0.2", "0.3")
    assert code == 0, err
    assert searches == [(0.2, 0.3)]
    assert "all σ" in out
    whole = {path.name: path.read_bytes() for path in cells.iterdir()}
    assert {"policy-s20-of-20-30-seed0.json", "policy-s30-of-20-30-seed0.json"} <= whole.keys()
    (cells / "policy-s30-of-20-30-seed0.json").unlink()
    assert compare(*flags, "0.2", "0.3")[0] == 0
    assert searches == [(0.2, 0.3)] * 2
    for name, content in whole.items():
        again = json.loads((cells / name).read_bytes())
        untimed = {name: 0 for name in again if "seconds" in name}
        assert again | untimed == json.loads(content) | untimed
    before = {path.name: path.read_bytes() for path in cells.iterdir()}
    assert compare(*flags, "0.2", "0.3", "0.4")[0] == 0
    assert searches[2:] == [(0.2, 0.3, 0.4)]
    after = {path.name: path.read_bytes() for path in cells.iterdir()}
    assert before.items() < after.items()
    assert len(after) == len(before) + 4  # `uniform` at 0.4, and one search for three
    shown = json.loads((compare.out / "comparison.json").read_text())["cells"]
    assert [cell["settings"]["targets"] for cell in shown if cell["method"] == "policy"] == [[0.2, 0.3, 0.4]] * 3
    old = cells / "policy-s20-of-20-30-seed0.json"
    shutil.copy(old, cells / "policy-s20-of-20-30-40-seed0.json")
    code, out, err = compare(*flags, "0.2", "0.3", "0.4")
    assert (code, "PPL" in out) == (2, False)
    (line,) = err.splitlines()
    assert "holds what belongs to cells/policy-s20-of-20-30-seed0.json: remove it" in line


def test_one_sparsity_has_no_use_for_one_search_for_all():
    assert "policy" not in named_methods((), False, (0.2,))
    assert named_methods(("policy",), False, (0.2,)) == ["policy"]
    assert "policy" in named_methods((), False, (0.2, 0.3))
    assert named_methods((), True, (0.2, 0.3)) == list(ABLATIONS)


def test_a_folder_is_of_one_start_and_one_of_before_is_of_everybody_s_own(compare):
    assert compare("--methods", "uniform", "evolution", "--start", "none")[0] == 0
    assert json.loads((compare.out / "comparison.json").read_text())["settings"]["start"] == "none"
    code, _, err = compare("--methods", "uniform")
    assert code == 2
    assert "was made with start 'none', not 'own': give another --out" in err
    other = compare.out.with_name("before")
    assert compare("--methods", "uniform", out=other)[0] == 0
    for name in ("settings.json", "identity.json"):
        file = other / name
        content = json.loads(file.read_text())
        content.pop("start" if name == "settings.json" else "--start")
        file.write_text(json.dumps(content))
    for file in (other / "dense.json", *(other / "cells").iterdir()):
        content = json.loads(file.read_text())
        content["identity"].pop("--start")
        file.write_text(json.dumps(content))
    assert compare("--methods", "uniform", "ffn-only", out=other)[0] == 0
    code, _, err = compare("--methods", "uniform", "--start", "ffn-only", out=other)
    assert code == 2
    assert "was made with start 'own', not 'ffn-only'" in err


def test_the_start_reaches_every_search(windows, monkeypatch):
    subject = replace(subject_of(tiny_model("llama-gqa"), windows), targets=(0.2, 0.3))
    names, asked = [name for name, method in METHODS.items() if method.searches], []
    real = Problem.of.__func__

    def record(cls, *arguments, **named):
        problem = real(cls, *arguments, **named)
        asked.append(problem.init)
        return problem

    monkeypatch.setattr(Problem, "of", classmethod(record))
    uniform = METHODS["uniform"].answer(Problem.of(subject.evaluator, 0.3)).kept.tolist()
    asked.clear()
    for name in names:
        measured = []
        with monkeypatch.context() as patch:
            for function in ("measure", "compare"):
                known = getattr(Meter, function)

                def keep(self, kept, n_samples, known=known, measured=measured):
                    measured.append(kept.tolist())
                    return known(self, kept, n_samples)

                patch.setattr(Meter, function, keep)
            search_and_measure(replace(subject, start="none"), name, METHODS[name], 0.3, 0, 20)
        if not name.startswith(("ppo", "policy")):  # which measure samples around it
            assert measured[0] == uniform
    assert asked == ["none"] * len(names)
