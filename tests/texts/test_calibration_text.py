"""A text of its own for ranking and calibration: who sees it, and that nothing is measured on it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import load_script, tiny_model
from plain import plainly
from tiny_runs import assert_same, cut_off, run_main, settings

import ffprune_env as ff
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.identity import ChangedError, identity_of_settings, require_same
from ffprune_env.making import make_prune_bandit
from ffprune_env.run.config import evaluator_settings, read_config
from ffprune_env.search.workers import Workers, _Worker
from ffprune_env.texts.overlap import require_apart
from ffprune_env.texts.plan_rows import plan_rows
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.window_settings import WindowSettings
from ffprune_env.texts.windows import load_windows

MODEL = tiny_model("llama")
ASKED = WindowSettings(64, 2, 2, 2, 4, fresh_windows=False)
SIZES = {"seq_len": 64, "search_windows": 2, "calibration_windows": 4}


@pytest.fixture(scope="session")
def other_text(tmp_path_factory):
    """Words that the usual file has not."""
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("\n".join(f"row {i} holds {i * 7919 % 100003} beside {i * 104729 % 99991}" for i in range(1000)))
    return path


def planned(text, tokenizer, calibration_text, **changes):
    asked = replace(ASKED, calibration_text=str(calibration_text), **changes)
    return load_planned_windows(MODEL, tokenizer, str(text), asked)


def test_only_calibration_windows_come_from_it_and_of_its_calibration_part(text_file, other_text, tokenizer):
    usual = load_planned_windows(MODEL, tokenizer, str(text_file), ASKED)
    found = planned(text_file, tokenizer, other_text)
    assert torch.equal(
        found.texts["calibration"], load_windows(str(other_text), tokenizer, "calibration", 64, 4, model=MODEL)
    )
    for purpose in ("search", "finalists", "curves"):
        assert torch.equal(found.texts[purpose], usual.texts[purpose])
    assert (usual.calibration_text, found.calibration_text) == (str(text_file), str(other_text))


def test_the_same_text_by_two_names_is_what_it_is_by_one(text_file, tokenizer, tmp_path):
    """Its search part and its calibration part have no token in common."""
    usual = load_planned_windows(MODEL, tokenizer, str(text_file), ASKED)
    copy, link = tmp_path / "copy.txt", tmp_path / "link.txt"
    shutil.copy(text_file, copy)
    link.symlink_to(text_file)
    for name in (copy, link, text_file, text_file.parent / "." / text_file.name):
        found = planned(text_file, tokenizer, name)
        assert all(torch.equal(found.texts[purpose], windows) for purpose, windows in usual.texts.items())


@pytest.mark.parametrize("purpose", ["search", "finalists", "curves"])
def test_a_calibration_text_that_holds_what_a_search_looks_at_is_refused(text_file, tokenizer, tmp_path, purpose):
    """A single window of many, in a file of another name and beginning."""
    usual = load_planned_windows(MODEL, tokenizer, str(text_file), ASKED)
    window = tokenizer.decode(usual.texts[purpose][0])
    other = tmp_path / "mixed.txt"
    before, after = "\n".join(f"{i}: {i**5}" for i in range(40)), "\n".join(f"{i**4} {i}" for i in range(60))
    other.write_text(before + window + after)
    said = (
        rf"\d\d% of the {purpose} text is also calibration text, which .*mixed\.txt gives, at most 1% is allowed: give"
    )
    with pytest.raises(ValueError, match=said):
        planned(text_file, tokenizer, other, calibration_windows=100)


def test_every_purpose_is_looked_at_by_itself():
    texts = {"search": torch.arange(64)[None], "pool": torch.arange(1000, 65000).view(1000, 64)}
    apart = {**texts, "calibration": torch.arange(70000, 70640).view(10, 64)}
    require_apart(apart, "c4")
    with pytest.raises(ValueError, match="100% of the search text is also calibration text, which c4 gives"):
        require_apart({**apart, "calibration": torch.cat([apart["calibration"], texts["search"]])}, "c4")


def test_the_plan_names_it(text_file, other_text, tokenizer, monkeypatch, capsys, tiny_folder):
    rows = plan_rows(planned(text_file, tokenizer, other_text), torch.zeros(1, 64, dtype=torch.int64), "test")
    named = {row.purpose: row.text for row in rows}
    assert named["ranking"] == named["calibration"] == f"{other_text}, calibration part"
    assert named["search"] == f"{text_file}, search part"
    words = ("--model", tiny_folder, "--text", text_file, "--calibration-text", other_text, "--seq-len", 64)
    monkeypatch.setattr(sys, "argv", ["evaluate/windows.py", *map(str, words), "--test-windows", "2"])
    assert load_script("evaluate/windows.py").main() == 0
    assert "other.txt, calibration part" in re.sub(r"[\s│]", " ", capsys.readouterr().out)


@pytest.mark.parametrize("calibration", ["ridge", "none"])
def test_ranking_and_calibration_see_it_and_the_search_does_not(tiny_folder, text_file, other_text, calibration):
    """Without a calibration the criterion looks at it all the same."""
    asked = plainly(**SIZES, calibration=calibration, fresh_windows=False)
    usual = ff.load_evaluator(str(tiny_folder), str(text_file), **asked)
    found = ff.load_evaluator(str(tiny_folder), str(text_file), calibration_text=str(other_text), **asked)
    direct = ff.load_evaluator(str(tiny_folder), str(other_text), **asked)
    assert torch.equal(found.windows, usual.windows)
    norms = (evaluator.statistics.square_norms for evaluator in (found, direct, usual))
    for of_found, of_direct, of_usual in zip(*norms, strict=True):
        assert torch.equal(of_found, of_direct)
        assert not torch.equal(of_found, of_usual)
    if calibration == "ridge":
        for i, unit in enumerate(found.units):
            assert torch.equal(
                found.calibration.weight(i, unit.n_groups - 1), direct.calibration.weight(i, unit.n_groups - 1)
            )


def test_an_environment_and_a_worker_have_it(tiny_folder, text_file, other_text):
    env = make_prune_bandit(str(tiny_folder), str(text_file), calibration_text=str(other_text), **plainly(**SIZES))
    settings = {
        "model": str(tiny_folder), "text": str(text_file), "dtype": "auto", "trust_remote_code": False,
        **plainly(**SIZES), "calibration_text": str(other_text),
    }  # fmt: skip

    class Asked(Workers):
        def __init__(self, count, arguments, *others):
            self.arguments = arguments

    worker = _Worker(Asked.like(env.evaluator, 1, vars(EvaluatorSettings()) | settings).arguments)
    for purpose, windows in env.evaluator.texts.items():
        assert torch.equal(worker.evaluator.texts[purpose], windows)
    assert worker.names[1]["calibration"] == str(other_text)
    assert worker.names[1]["search"] == str(text_file)


@pytest.fixture(scope="module")
def apart(ppo_script, tiny_folder, text_file, other_text, tmp_path_factory):
    """The folder of a run that was calibrated on another text."""
    run = tmp_path_factory.mktemp("apart") / "run"
    changes = {"calibration-text": other_text, "init": "ffn-only", "ridge": 0.5, "ridge-scale": "absolute"}
    assert run_main(ppo_script, settings(tiny_folder, text_file, run, **changes)) == 0
    return run


def test_everything_that_a_run_leaves_names_it(apart, whole, text_file, other_text):
    best, usual = (json.loads((run / "best.json").read_text()) for run in (apart, whole))
    assert (best["text"], best["calibration_text"]) == (str(text_file), str(other_text))
    assert usual["calibration_text"] == usual["text"] == str(text_file)
    assert (best["ridge"], best["ridge_scale"], usual["ridge_scale"]) == (0.5, "absolute", "relative")
    config = yaml.safe_load((apart / "config.yaml").read_text())
    assert (config["calibration_text"], config["ridge_scale"]) == (str(other_text), "absolute")
    digests, before = (json.loads((run / "identity.json").read_text()) for run in (apart, whole))
    assert digests["calibration text"] != before["calibration text"]
    assert digests["test text"] == before["test text"]
    card = (apart / "model" / "README.md").read_text()
    assert "| ranked and calibrated on | other.txt, 2 windows of 64 tokens |" in card
    assert "| calibration | ridge, λ = 0.5 added to the diagonal of G; then in sequence" in card
    assert "| ranked and calibrated on | words.txt, 2 windows" in (whole / "model" / "README.md").read_text()


def test_a_run_that_goes_on_keeps_it(apart, ppo_script, tmp_path):
    lines = (apart / "samples.jsonl").read_bytes().splitlines(keepends=True)
    cut_off(apart, tmp_path / "run", sum(map(len, lines[:6])))
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    assert_same(tmp_path / "run", apart)


def test_a_model_that_is_asked_for_later_is_calibrated_on_it(apart, other_text, tmp_path, monkeypatch, capsys):
    run, script = tmp_path / "run", load_script("evaluate/allocate.py")
    shutil.copytree(apart, run, ignore=shutil.ignore_patterns(".lock", "tb"))
    monkeypatch.setattr(sys, "argv", ["allocate", str(run), "--sparsity", "0.2", "--out", str(tmp_path / "out")])
    assert script.main() == 0
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    assert (best["calibration_text"], best["ridge_scale"]) == (str(other_text), "absolute")
    config = yaml.safe_load((run / "config.yaml").read_text())
    changed = tmp_path / "changed.txt"
    changed.write_text(other_text.read_text().replace("beside", "beneath"))
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "calibration_text": str(changed)}))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["allocate", str(run), "--sparsity", "0.2", "--out", str(tmp_path / "another")])
    assert script.main() == 2
    assert f"the calibration text {changed} has changed since" in " ".join(capsys.readouterr().err.split())


def no_ranking(*args, **settings):
    raise AssertionError("the model is not ranked before the texts are compared")


def test_what_is_tested_on_is_not_calibrated_on(
    ppo_script, tiny_folder, text_file, other_text, tmp_path, monkeypatch, capsys
):
    """Of a file of its own all is test text, and so also its calibration part."""
    monkeypatch.setattr(ppo_script, "build_evaluator", no_ranking)
    for name in (other_text, shutil.copy(other_text, tmp_path / "copy.txt")):
        changes = {"test-text": other_text, "test-windows": 400, "calibration-windows": 100, "calibration-text": name}
        capsys.readouterr()
        assert run_main(ppo_script, settings(tiny_folder, text_file, tmp_path / "run", **changes)) == 2
        assert "of the test text is also search or calibration text" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "run").exists()
    absent = {"calibration-text": "absent.txt"}
    assert run_main(ppo_script, settings(tiny_folder, text_file, tmp_path / "run", **absent)) == 2
    assert "text absent.txt: no such file" in capsys.readouterr().err


def test_a_comparison_has_one_text_to_calibrate_on(compare, other_text):
    code, _, _ = compare("--methods", "uniform", calibration_text=other_text)
    assert code == 0
    assert json.loads((compare.out / "settings.json").read_text())["calibration_text"] == str(other_text)
    code, _, err = compare("--methods", "uniform")
    assert code == 2
    assert f"was made with calibration_text {str(other_text)!r}, not None: give another --out" in " ".join(err.split())


def test_what_was_made_before_there_was_such_a_setting_means_what_was_done_then(whole, tmp_path):
    config = yaml.safe_load((whole / "config.yaml").read_text())
    for name in ("calibration_text", "ridge_scale", "heads"):
        del config[name]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    found = evaluator_settings(read_config(tmp_path / "config.yaml"), tmp_path)
    assert (found.calibration_text, found.ridge_scale, found.heads) == (None, "relative", "single")
    then = identity_of_settings({"ridge_scale": "relative", "heads": "single"})
    require_same({}, then, "it was begun", "search again")
    with pytest.raises(ChangedError):
        require_same({}, identity_of_settings({"ridge_scale": "absolute"}), "it was begun", "search again")
