"""The study and the comparison after recovery, on tiny models: they go on where they were, and say what is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import pytest
import torch
from conftest import load_script

from ffprune_env.comparison.recovered import RecoveredCell
from ffprune_env.pruning.calibration_kind import ONE_SEED_FELL_BACK
from ffprune_env.pruning.sequential import SequentialCalibration

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


def test_a_study_ranks_cells_of_one_text_and_one_version(whole, run_script, tmp_path):
    """What is measured already is shown; to what does not say what it is of nothing is added, nor to another text."""
    out, file = tmp_path / "study", tmp_path / "lessons.txt"
    file.write_text("\n".join(f"lesson {i} is {i * i + 7}" for i in range(200)))
    flags = ["--out", out, "--recovery-text", file, "--rates", "1e-3", "--objectives", "kl", "--batches", 1]
    words = [whole, *flags, "--token-budgets", 250, "--recover-held-out", 1]

    def study(*weights):
        return run_script("evaluate/recovery_study.py", *words, "--weights", *weights)

    assert study("all")[0] == 0
    begun = json.loads((out / "study.json").read_text())
    file.write_text("\n".join(f"lesson {i} is {i * i + 8}" for i in range(200)))
    code, _, err = study("all", "outputs")
    assert (code, err) == (2, f"error: the recovery text has changed since {out} was begun: give another --out\n")
    earlier = begun | {"identity": begun["identity"] | {"torch": "1.0"}}
    (out / "study.json").write_text(json.dumps(earlier))
    code, _, err = study("all")
    says = f"torch has changed from 1.0 to {begun['identity']['torch']} since {out} was begun: give another --out"
    assert (code, err) == (2, f"error: {says}\n")
    del earlier["identity"]
    (out / "study.json").write_text(json.dumps(earlier))
    code, shown, _ = study("all")
    assert (code, "| all |" in shown) == (0, True)
    code, _, err = study("all", "outputs")
    assert (code, f"{out} does not say on what text, and by what versions, it was measured" in err) == (2, True)
    assert len(list(out.glob("cell-*"))) == 1


def test_a_study_is_of_the_model_that_the_run_holds(whole, run_script, tmp_path):
    """A run that is made again at the same place has another; a study of before says of its own what it measured."""
    run, out = (
        shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", "tb")),
        tmp_path / "study",
    )
    lists = ["--rates", "1e-3", "--weights", "outputs", "--objectives", "kl", "--batches", 1, "--token-budgets", 250]
    words = ["evaluate/recovery_study.py", run, "--out", out, *lists, "--recover-held-out", 1]
    assert run_script(*words)[0] == 0
    best, begun = (json.loads(file.read_text()) for file in (run / "best.json", out / "study.json"))
    earlier = {name: value for name, value in begun.items() if name != "model"}

    def told(study, **saved):
        (out / "study.json").write_text(json.dumps(study))
        (run / "best.json").write_text(json.dumps(best | {"saved": best["saved"] | saved}))
        return run_script(*words)

    another = {"test_ppl": 1.1 * best["saved"]["test_ppl"]}
    for study in (begun, earlier, {name: value for name, value in earlier.items() if name != "before"}):
        code, shown, err = told(study)
        assert (code, err, "| outputs |" in shown) == (0, "", True)
        code, shown, err = told(study, **another)
        assert (code, "| outputs |" in shown) == (2, False)
        assert err.startswith(f"error: {out} is a study of another model/ than ")
    others = best["saved"]["kept"][::-1]
    assert told(begun, kept=others)[0] == 2


def test_a_study_goes_on_behind_a_combination_that_fails(whole, run_script, monkeypatch, tmp_path):
    script, out = load_script("evaluate/recovery_study.py"), tmp_path / "study"
    recover = script.recover

    def all_are_too_many(model, teacher, text, settings, **more):
        if settings.trained == "all":
            raise torch.OutOfMemoryError("no memory")
        return recover(model, teacher, text, settings, **more)

    monkeypatch.setattr(script, "recover", all_are_too_many)
    words = [whole, "--out", out, "--rates", "1e-3", "--weights", "all", "outputs", "--objectives", "kl"]
    more = ["--batches", 1, "--token-budgets", 250]
    code, shown, err = run_script("evaluate/recovery_study.py", *words, *more)
    assert (code, err) == (1, "error: all-kl-0.001-1-250: no memory\n")
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("| ")][1:] == ["outputs"]


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


def test_a_comparison_is_recovered_with_as_many_windows_at_once_as_is_said(compare, run_script):
    """What it was measured with it does not keep; folders of before did, and that is the default then."""
    words = ("--methods", "uniform", "--sparsity", "0.3", "--calibration", "none", "--reward-model", "cut")
    assert compare(*words, "--batch-size", "1")[0] == 0
    script, file = load_script("evaluate/recover_compared.py"), compare.out / "settings.json"
    settings = json.loads(file.read_text())
    for kept, asked, used in (({}, None, None), ({}, 1, 1), ({"batch_size": 3}, None, 3), ({"batch_size": 3}, 2, 2)):
        file.write_text(json.dumps(settings | kept))
        job = script.plan(script.Args(compared=compare.out, batch_size=asked))
        assert job.settings.batch_size == used
        assert script.measuring_of(script.Args(compared=compare.out), job, None, "").settings.batch_size == used
    code, _, err = run_script("evaluate/recover_compared.py", compare.out, "--batch-size", 0)
    assert (code, "--batch-size must be at least 1, got 0" in err) == (2, True)


def test_what_two_processes_recover_otherwise_is_not_mixed(compare, run_script, monkeypatch):
    """Both began while nothing was recovered yet: who comes second is told, and neither trains for nothing."""
    assert compare("--methods", "uniform", "ffn-only", "--sparsity", "0.3", "--calibration", "ridge")[0] == 0
    script, trained = load_script("evaluate/recover_compared.py"), []

    def invented(subject, cell, text, settings, dense):
        trained.append(cell.method)
        facts = {"method": cell.method, "target_sparsity": cell.target_sparsity, "seed": cell.seed}
        ppls = {"dense_ppl": 2.0, "before_ppl": 3.0, "after_ppl": 2.5}
        more = {"zero_shot_before": None, "zero_shot_after": None, "recovery": {}}
        found = RecoveredCell(
            **facts, **ppls, **more, recovery_seed=settings.seed, settings=dataclasses.asdict(settings)
        )
        if len(trained) == 1:  # the other process ends first
            other = dataclasses.replace(settings, windows_per_step=7)
            job = dataclasses.replace(jobs[0], recovery=other)
            about = {"text_digest": "x", "versions": script.identity_of_versions()}
            script.keep(job, cell, dataclasses.replace(found, settings=dataclasses.asdict(other), **about))
        return found

    plan, jobs = script.plan, []
    monkeypatch.setattr(script, "plan", lambda args: jobs.append(plan(args)) or jobs[0])
    monkeypatch.setattr(script, "recover_cell", invented)
    code, shown, err = run_script("evaluate/recover_compared.py", compare.out, *QUICK)
    assert (code, len(trained), "|" in shown) == (2, 1, False)
    assert "was recovered with windows_per_step 7, not 1: remove it" in err
    (file,) = (compare.out / "recovered").glob("*.json")
    assert json.loads(file.read_text())["settings"]["windows_per_step"] == 7
    with pytest.raises(ValueError, match="was recovered with windows_per_step 7"):
        script.report(jobs[0])
    assert not (compare.out / "recovered.md").exists()


def test_a_cell_that_cannot_be_made_again_does_not_stop_the_others(compare, run_script, monkeypatch):
    """What was calibrated by Eqs. 6-7 alone for want of memory is made so again; what is not what it was is said."""
    methods = ("uniform", "ffn-only", "flap")

    def refuse(*_):
        raise torch.OutOfMemoryError

    def made(*methods):
        return compare("--methods", *methods, "--sparsity", "0.3")[0]

    with monkeypatch.context() as patch:
        patch.setattr(SequentialCalibration, "_fit", refuse)
        assert made("uniform") == 0
    assert made(*methods) == 0
    files = {json.loads(file.read_text())["method"]: file for file in (compare.out / "cells").glob("*.json")}
    cells = {method: json.loads(file.read_text()) for method, file in files.items()}
    assert [cells[method]["calibration"] for method in methods] == ["ridge", "sequential", "sequential"]
    files["flap"].write_text(json.dumps(cells["flap"] | {"calibrated_test_ppl": 1e6}))

    def recovered():
        return {json.loads(file.read_text())["method"] for file in (compare.out / "recovered").glob("*.json")}

    with monkeypatch.context() as patch:
        patch.setattr(SequentialCalibration, "_fit", refuse)
        code, shown, err = run_script("evaluate/recover_compared.py", compare.out, *QUICK)
    assert (code, recovered()) == (1, {"uniform"})
    assert "| `uniform` ‡ |" in shown  # it is not what was asked for, and said once below
    assert shown.count(ONE_SEED_FELL_BACK) == 1
    says = "its perplexity is of a model calibrated as sequential, and that fails now"
    assert [line for line in err.splitlines() if line.startswith("error:")] == [
        f"error: cells/{method}-s30.json: {says}" for method in ("ffn-only", "flap")
    ]
    code, shown, err = run_script("evaluate/recover_compared.py", compare.out, *QUICK)
    assert (code, recovered()) == (1, {"uniform", "ffn-only"})
    assert "| `ffn-only` |" in shown
    (line,) = err.splitlines()
    assert line.startswith("error: cells/flap-s30.json: what was written is not what was measured")
    for method in ("uniform", "ffn-only"):
        (file,) = (compare.out / "recovered").glob(f"{method}-*.json")
        before = json.loads(file.read_text())["before_ppl"]
        assert before == pytest.approx(cells[method]["calibrated_test_ppl"], rel=1e-4)
