"""The study and the comparison after recovery, on tiny models: they go on where they were, and say what is wrong."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import load_script

QUICK = ["--recover-rate", "1e-3", "--recover-tokens", "250", "--recover-held-out", "1"]


@pytest.fixture
def run_script(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")

    def call(path, *words):
        script = load_script(path)
        monkeypatch.setattr(sys, "argv", [path, *map(str, words)])
        code = script.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_study_measures_what_is_missing_and_writes_a_table(whole, run_script, tmp_path):
    out = tmp_path / "study"
    words = [whole, "--out", out, "--rates", "1e-3", "--weights", "all", "lora-2", "--objectives", "kl", "--batches", 1]
    code, shown, _ = run_script("evaluate/recovery_study.py", *words, "--token-budgets", 250, "--recover-held-out", 1)
    assert code == 0
    assert (out / "study.md").read_text() in shown
    rows = [line for line in shown.splitlines() if line.startswith(("| all", "| lora-2"))]
    assert len(rows) == 2
    times = {file.name: file.stat().st_mtime_ns for file in out.glob("cell-*")}
    assert len(times) == 2
    assert run_script("evaluate/recovery_study.py", *words, "--token-budgets", 250, "--recover-held-out", 1)[1] == shown
    assert times == {file.name: file.stat().st_mtime_ns for file in out.glob("cell-*")}
    for more, says in (
        (("--recover-seed", 7), "with another settings"),
        (("--recovery-text", "python-docs"), "with another recovery_text, None and not 'python-docs'"),
    ):
        code, _, err = run_script("evaluate/recovery_study.py", *words, "--token-budgets", 250, *more)
        assert (code, f"{out} is a study {says}" in err) == (2, True)
    code, _, err = run_script("evaluate/recovery_study.py", *words, "--lora", 4)
    assert (code, "--lora is what the study varies: say it by --weights" in err) == (2, True)
    begun = json.loads((out / "study.json").read_text())
    (out / "study.json").write_text(json.dumps(begun | {"run": "another"}))
    code, _, err = run_script("evaluate/recovery_study.py", *words, "--token-budgets", 250, "--recover-held-out", 1)
    assert (code, f"{out} is a study with another run, 'another' and not" in err) == (2, True)
    code, _, err = run_script("evaluate/recovery_study.py", whole, "--out", out, "--weights", "some")
    assert (code, "unknown weights 'some'; allowed are all, outputs and lora-RANK" in err) == (2, True)


def test_one_thing_is_changed_at_a_time_unless_all_are(tmp_path):
    script = load_script("evaluate/recovery_study.py")
    lists = {
        "rates": (1.0, 2.0),
        "weights": ("all",),
        "objectives": ("kl", "ce"),
        "batches": (1,),
        "token_budgets": (5, 6, 7),
    }
    args = script.Args(of=tmp_path, **lists)
    assert len(script.cells_of(args)) == 1 + 1 + 0 + 1 + 2
    assert len(script.cells_of(script.Args(of=tmp_path, grid=True, **lists))) == 2 * 1 * 2 * 3


def test_methods_are_compared_after_recovery(compare, run_script):
    code, *_ = compare("--methods", "uniform", "flap", "svd-llm", "--sparsity", "0.3", "--calibration", "ridge")
    assert code == 0
    order = (compare.out / "order.json").read_bytes()
    code, shown, err = run_script("evaluate/recover_compared.py", compare.out, *QUICK)
    assert (code, err) == (0, "")
    for name in ("uniform", "flap", "svd-llm"):
        assert f"| `{name}` |" in shown
    files = sorted((compare.out / "recovered").glob("*.json"))
    found = {x["method"]: x for x in (json.loads(file.read_text()) for file in files)}
    cells = {x["method"]: x for x in (json.loads(f.read_text()) for f in (compare.out / "cells").glob("*.json"))}
    for name, cell in cells.items():
        then = cell["calibrated_test_ppl"] or cell["test_ppl"]
        assert found[name]["before_ppl"] == pytest.approx(then, rel=1e-4)
        assert found[name]["recovery"]["after"]["kl"] <= found[name]["recovery"]["before"]["kl"]
    assert (compare.out / "order.json").read_bytes() == order
    times = [file.stat().st_mtime_ns for file in files]
    assert run_script("evaluate/recover_compared.py", compare.out, *QUICK)[1] == shown
    assert times == [file.stat().st_mtime_ns for file in files]
    code, _, err = run_script("evaluate/recover_compared.py", compare.out, *QUICK, "--recover-batch", 2)
    assert (code, "was recovered with windows_per_step 1, not 2: remove it" in err) == (2, True)
    code, _, err = run_script("evaluate/recover_compared.py", compare.out, *QUICK, "--recovery-text", "python-docs")
    assert (code, "was recovered with recovery_text None, not 'python-docs': remove it" in err) == (2, True)
    code, _, err = run_script("evaluate/recover_compared.py", compare.out / "cells", *QUICK)
    assert (code, "is no comparison: evaluate/compare.py makes one" in err) == (2, True)
