"""evaluate/compare.py on a tiny model: what it measures, goes on with, reports, and refuses."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch

from ffprune_env.comparison import measuring
from ffprune_env.comparison.rebuilt import REBUILDERS
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.zero_shot import TaskResult, ZeroShot
from ffprune_env.methods.registry import METHODS
from ffprune_env.pruning.sequential import SequentialCalibration


def test_the_script_compares_all_methods_and_goes_on_where_it_stopped(compare, monkeypatch):
    code, out, err = compare("--sparsity", "0.2", "0.3", "--seeds", "2")
    assert code == 0, err
    names = {path.name for path in (compare.out / "cells").iterdir()}
    searches = sum(method.searches for method in METHODS.values())
    assert len(names) == 2 * (len(METHODS) - searches + len(REBUILDERS) + 2 * searches)
    content = json.loads((compare.out / "comparison.json").read_text())
    assert content["settings"]["dtype"] == "torch.float32"
    assert content["settings"]["device"] == "cpu"
    assert len(content["cells"]) == len(names)
    assert {cell["method"] for cell in content["cells"]} == {*METHODS, *REBUILDERS}
    for suffix in ("md", "html"):
        text = (compare.out / f"comparison.{suffix}").read_text()
        assert all(name in text for name in (*METHODS, *REBUILDERS))
    assert "ffn-only" in out

    def no_ranking(*args, **settings):
        raise AssertionError("nothing is missing, so the model is only looked at")

    before = {path: path.stat().st_mtime_ns for path in (compare.out / "cells").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "build_evaluator", no_ranking)
        assert compare("--sparsity", "0.2", "0.3", "--seeds", "2")[0] == 0
    (compare.out / "cells" / "ppo-s20-seed1.json").unlink()
    assert compare("--sparsity", "0.2", "0.3", "--seeds", "2")[0] == 0
    after = {path: path.stat().st_mtime_ns for path in (compare.out / "cells").iterdir()}
    assert [path.name for path in before if before[path] != after[path]] == ["ppo-s20-seed1.json"]


def test_the_report_has_the_windows_that_were_made_of_what_was_asked_for(compare):
    """The model takes 128 tokens, and the text has fewer windows of calibration and curves than were asked for."""
    asked = {"seq_len": 1024, "test_seq_len": 2048, "calibration_windows": 500, "curve_windows": 300}
    assert compare("--methods", "uniform", "--sparsity", "0.2", **asked)[0] == 0
    shown = json.loads((compare.out / "comparison.json").read_text())["settings"]
    assert (shown["seq_len"], shown["test_seq_len"], shown["search_windows"], shown["test_windows"]) == (128, 128, 2, 3)
    assert shown["calibration_windows"] < 500
    assert shown["curve_windows"] < 300
    n = {purpose: shown[f"{purpose}_windows"] for purpose in ("curve", "pool", "calibration")}
    counted = (
        f"curves {n['curve']} of 128 tokens, pool {n['pool']} of 128 tokens, calibration {n['calibration']} of 128"
    )
    for suffix in ("md", "html"):
        text = (compare.out / f"comparison.{suffix}").read_text()
        assert f"search 2 of 128 tokens, finalists 8 of 128 tokens, {counted} tokens, test 3 of 128 tokens" in text
    assert "| seq len | 128 |" in (compare.out / "comparison.md").read_text()
    assert compare("--methods", "uniform", "--sparsity", "0.2", **asked)[0] == 0  # the folder is of what was asked for


def test_ctrl_c_reports_what_there_is(compare, monkeypatch):
    """Also what would have come later, and what was finished before its zero-shot questions were."""
    flags = ("--methods", "uniform", "evolution", "ppo", "--sparsity", "0.2")
    assert compare(*flags)[0] == 0
    (compare.out / "cells" / "evolution-s20-seed0.json").unlink()
    measure, calls = LMEvaluator.measure, []

    def interrupted(self, kept, n_samples):
        calls.append(kept)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return measure(self, kept, n_samples)

    with monkeypatch.context() as patch:
        patch.setattr(LMEvaluator, "measure", interrupted)
        code, out, err = compare(*flags)
    assert code == 130
    assert "what was finished is kept" in err
    assert "2 cells; reports in" in out
    content = json.loads((compare.out / "comparison.json").read_text())
    assert [cell["method"] for cell in content["cells"]] == ["uniform", "ppo"]


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_a_method_that_cannot_do_it_does_not_stop_the_others(compare, monkeypatch, error):
    def fail(*args):
        raise error("no memory\nleft")

    monkeypatch.setitem(REBUILDERS, "svd-llm", fail)
    code, out, err = compare("--methods", "svd-llm", "ffn-only", "uniform", "--sparsity", "0.8")
    assert code == 1
    assert "svd-llm at σ = 0.8: no memory left" in err
    assert "ffn-only at σ = 0.8: sparsity 0.8 would leave an FFN less than one group" in err
    assert "1 cells; reports in" in out


def test_a_typo_does_not_take_the_folder(compare):
    assert compare("--methods", "uniform", model="nowhere/at-all")[0] == 2
    assert not compare.out.exists()
    assert compare("--methods", "uniform")[0] == 0


def test_repeated_names_and_sparsities_count_once(compare):
    assert compare("--methods", "uniform", "uniform", "--sparsity", "0.2", "0.2")[0] == 0
    assert len(json.loads((compare.out / "comparison.json").read_text())["cells"]) == 1


def test_zero_shot_is_added_to_what_is_finished(compare, monkeypatch, tmp_path):
    """The search is not run again; a failure or Ctrl-C while asking loses nothing that was found."""
    asked = []

    def stub(model, tokenizer, tasks, limit, batch_size):
        assert batch_size == 5
        asked.append(model.model.layers[0].mlp.down_proj.in_features)
        if len(asked) == 3:
            raise RuntimeError("out of memory")
        return ZeroShot({"boolq": TaskResult(0.5, 0.1, None, None, limit, "acc")})

    monkeypatch.setattr(compare.module, "open_tasks", lambda data_dir: nullcontext({"boolq": None}))
    monkeypatch.setattr(compare.module, "score_tasks", stub)
    flags = ("--methods", "uniform", "evolution", "--seeds", "2", "--batch-size", "5")
    assert compare(*flags, "--zero-shot", "--limit", "9", model="nowhere/at-all")[0] == 2
    assert not compare.out.exists()
    assert compare(*flags)[0] == 0
    before = json.loads((compare.out / "cells" / "evolution-s20-seed0.json").read_text())
    code, _, err = compare(*flags, "--zero-shot", "--limit", "7")
    assert code == 1
    assert "evolution at σ = 0.2, seed 0: out of memory" in err
    assert json.loads((compare.out / "cells" / "evolution-s20-seed0.json").read_text()) == before
    assert compare(*flags, "--zero-shot", "--limit", "7")[0] == 0
    assert len(asked) == 4  # dense, uniform, evolution twice; second seeds are not asked
    assert asked[0] > asked[1]
    after = json.loads((compare.out / "cells" / "evolution-s20-seed0.json").read_text())
    assert after["zero_shot"] == {"boolq": 0.5, "average": 0.5}
    assert after["zero_shot_stderr"] == {"boolq": 0.1, "average": 0.1}
    assert "- The first 7 questions of every task were asked." in (compare.out / "comparison.md").read_text()
    assert {key: value for key, value in after.items() if "zero" not in key} == {
        key: value for key, value in before.items() if "zero" not in key
    }
    assert "50.0% (± 10.0)" in (compare.out / "comparison.md").read_text()
    code, _, err = compare(*flags, "--zero-shot", "--limit", "8")
    assert code == 2
    assert "was made with limit 7, not 8" in err
    assert compare(*flags, "--zero-shot", "--zero-shot-seeds", "2", "--limit", "7")[0] == 0
    assert len(asked) == 5  # the second seed of evolution, and nothing anew
    assert json.loads((compare.out / "cells" / "evolution-s20-seed1.json").read_text())["zero_shot"]


def test_the_ablation_shares_its_cells_with_the_comparison(compare):
    assert compare("--methods", "uniform", "ppo")[0] == 0
    main = (compare.out / "comparison.md").read_text()
    code, out, _ = compare("--ablation")
    assert code == 0
    assert "calibration only" in out
    assert (compare.out / "comparison.md").read_text() == main
    names = {path.name for path in (compare.out / "cells").iterdir()}
    assert {"uniform-s20.json", "ppo-s20-seed0.json", "ppo-greedy-s20-seed0.json"} <= names
    content = json.loads((compare.out / "ablation.json").read_text())
    cells = {cell["method"]: cell for cell in content["cells"]}
    uniform, alone, both = (cells[name] for name in ("uniform", "ppo-plain-reward", "ppo"))
    four = (uniform["test_ppl"], uniform["calibrated_test_ppl"], alone["test_ppl"], both["calibrated_test_ppl"])
    row = " | ".join(f"{ppl:.2f}" for ppl in four)
    assert f"| 0.2 | {row} |" in (compare.out / "ablation.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "pppo"}, "unknown method 'pppo'; allowed are uniform, ffn-only,"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"evaluations": 0}, "--evaluations must be at least 1, got 0"),
        ({"test_windows": 0}, "--test-windows must be at least 1, got 0"),
        ({"sparsity": 1.5}, "--sparsity takes numbers between 0 and 1, got 1.5"),
        ({"model": "nowhere/at-all"}, "nowhere/at-all"),
        ({"criterion": "luck"}, "unknown criterion 'luck'; allowed are wanda, wifv"),
        ({"text": "nothing.txt"}, "no such file"),
        ({"zero_shot_seeds": 2}, "nothing looks at --zero-shot-seeds: no questions are asked: add --zero-shot"),
        ({"data_dir": "."}, "nothing looks at --data-dir: no questions are asked, neither as a reward"),
        ({"patience": 2}, "every search of a comparison has the same budget: leave out --patience"),
        ({"eval_every": 2}, "no search of a comparison is shown in TensorBoard: leave out --eval-every"),
    ],
)
def test_bad_input_gets_one_line(compare, changes, message):
    code, _, err = compare(**changes)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [("--methods", "ppo"), ("--reward-model", "cut"), ("--start", "none")])
def test_the_ablation_takes_no_methods_and_both_rewards_and_has_its_starts(compare, words):
    code, _, err = compare("--ablation", *words)
    assert code == 2
    assert f"leave out {words[0]}" in err


def test_a_cell_says_how_it_was_calibrated_and_is_marked_where_that_is_not_as_asked(compare, monkeypatch, caplog):
    """Memory runs out for one method: those after it are calibrated in sequence, and nothing is mixed in silently."""
    fit, fitted = SequentialCalibration._fit, []

    def first_fails(self, *given):
        fitted.append(self)
        if len(fitted) <= 4:  # with a pass that is shared, and 4, 2 and 1 windows at once
            raise torch.OutOfMemoryError
        fit(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(SequentialCalibration, "_fit", first_fails)
        code, out, err = compare("--methods", "uniform", "ffn-only", "flap-bias", "svd-llm")
    assert (code, err) == (0, "")
    cells = {path.stem: json.loads(path.read_text()) for path in (compare.out / "cells").iterdir()}
    kinds = {name: (cell["calibration"], cell["calibration_asked"]) for name, cell in cells.items()}
    assert kinds == {
        "uniform-s20": ("ridge", "sequential"),
        "ffn-only-s20": ("sequential", "sequential"),
        "flap-bias-s20": ("flap-bias", "flap-bias"),
        "svd-llm-s20": ("none", "none"),
    }
    assert "uniform at σ = 0.2 is calibrated as ridge, not sequential: it is marked" in caplog.text
    rows = [line.split() for line in out.splitlines()]
    (uniform,) = (row for row in rows if row[:2] == ["uniform", "‡"])
    assert not any(word[0] in "+-" for word in uniform)  # no change in %
    assert "‡ With one seed at least calibrated by Eqs. 6-7 alone" in (compare.out / "comparison.md").read_text()


def test_what_is_rewarded_is_reported_on_what_no_search_saw(compare, monkeypatch, tmp_path):
    """Also of methods that rebuild the weights, and of the model that is calibrated, not of the one that is cut."""
    (tmp_path / "holding.py").write_text(
        "def share(model, tokenizer, held_out=False):\n"
        "    return sum(p.numel() for p in model.parameters()) / 1e5 + 10 * held_out\n"
    )
    monkeypatch.chdir(tmp_path)
    flags = ("--methods", "uniform", "flap-bias", "ppo", "svd-llm", "--seeds", "2", "--reward", "holding:share")
    code, out, err = compare(*flags)
    assert code == 0, err
    content = json.loads((compare.out / "comparison.json").read_text())
    for cell in content["cells"]:
        assert cell["held_out"]["value"] == pytest.approx(cell["params"] / 1e5 + 10)
        assert cell["held_out"]["loss"] == -cell["held_out"]["value"]
    assert content["dense_held_out"]["value"] == pytest.approx(content["n_params"] / 1e5 + 10)
    assert "rewarded, held out" in out
    for suffix in ("md", "html"):
        assert "value: what the function says." in (compare.out / f"comparison.{suffix}").read_text()
