"""A search over a range, what it leaves, and evaluate/allocate.py, which writes its model at any sparsity in it."""

from __future__ import annotations

import json
import shutil
import sys
import time

import gguf
import numpy as np
import pytest
import tiny_runs
import yaml
from conftest import load_script

import ffprune_env as ff
from ffprune_env.cli.settings import parse_settings
from ffprune_env.lm.same_model import rounding_tolerance
from ffprune_env.run import answer_report, saved_model
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.frontier import ALONE, frontier
from ffprune_env.run.frontier_plot import frontier_plot
from ffprune_env.run.told_before import ToldBefore, told_before
from ffprune_env.search.finalists import Answer

TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5)


def best_of(folder):
    return json.loads((folder / "best.json").read_text())


@pytest.fixture(scope="module")
def ranged(ppo_script, tiny_folder, text_file, tmp_path_factory):
    """A search over a range, and what it printed."""
    run = tmp_path_factory.mktemp("range") / "run"
    changes = {"sparsity": "0.1:0.5", "evaluations": 16, "init": "ffn-only"}
    with ppo_script.console.capture() as said:
        assert tiny_runs.run_main(ppo_script, tiny_runs.settings(tiny_folder, text_file, run, **changes)) == 0
    return run, said.get()


@pytest.fixture
def own(ranged, tmp_path):
    """A copy of the range's run to write to."""
    return shutil.copytree(ranged[0], tmp_path / "own", ignore=shutil.ignore_patterns(".lock", "tb"))


def test_of_a_range_five_sparsities_are_measured_and_no_model_is_written(ranged):
    run, said = ranged
    assert sorted(path.name for path in run.glob("s*") if path.is_dir()) == ["s10", "s20", "s30", "s40", "s50"]
    for target in TARGETS:
        folder = run / f"s{100 * target:g}"
        best = best_of(folder)
        assert best["target_sparsity"] == target <= best["chosen"]["sparsity"] < target + 0.03
        assert {"dense", "uniform", "chosen"} <= set(best["calibration"])
        assert not (folder / "model").exists()
        assert (folder / "plots" / "retention.png").is_file()
        assert f"{best['calibration']['chosen']['test_ppl']:.2f}" in said
    assert sum(best_of(run / f"s{100 * target:g}")["evaluations_for_target"] for target in TARGETS) == 16
    assert (run / "plots" / "frontier.png").is_file()
    assert f"ffprune allocate {run} --sparsity 0.3" in said


def test_a_run_over_a_range_is_replayed_and_goes_on(ranged, ppo_script, tmp_path):
    run, _ = ranged
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["sparsity"] == {"low": 0.1, "high": 0.5}
    again = parse_settings(["--config", str(run / "config.yaml")], ppo_script.Args, ppo_script.RUN_PRESETS)
    assert again.targets == TARGETS
    cut = shutil.copytree(run, tmp_path / "cut", ignore=shutil.ignore_patterns("s*0", "plots", ".lock"))
    lines = (run / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "samples.jsonl").write_bytes(b"".join(lines[:9]))
    assert tiny_runs.run_main(ppo_script, ["--resume", cut]) == 0
    assert tiny_runs.samples_of(cut) == tiny_runs.samples_of(run)
    for target in TARGETS:
        assert tiny_runs.best_of(cut / f"s{100 * target:g}") == tiny_runs.best_of(run / f"s{100 * target:g}")


def test_another_search_starts_from_what_a_range_has_learnt(ranged, ppo_script, tiny_folder, text_file, tmp_path):
    """At a sparsity that was never trained, and over another range."""
    run, _ = ranged
    for name, sparsity in (("one", "0.27"), ("range", "0.15:0.35")):
        changes = {"sparsity": sparsity, "evaluations": 8, "init": run, "init-steps": 0}
        flags = tiny_runs.settings(tiny_folder, text_file, tmp_path / name, **changes)
        assert tiny_runs.run_main(ppo_script, [*flags, "--no-baselines", "--no-save-model"]) == 0
        start = json.loads((tmp_path / name / "start.json").read_text())
        policy = ff.Policy.load(run)
        for at, scores in start["targets"].items():
            np.testing.assert_allclose(scores, policy.scores(float(at)), atol=1e-12)


def test_the_policy_answers_at_once_and_at_the_targets_as_the_run_did(ranged):
    run, _ = ranged
    policy = ff.Policy.load(run)
    assert policy.targets == TARGETS
    for target in TARGETS:
        np.testing.assert_array_equal(
            policy.allocate(target).kept, best_of(run / f"s{100 * target:g}")["chosen"]["kept"]
        )
    before, after = policy.allocate(0.2), policy.allocate(0.3)
    between = policy.allocate(0.25)
    assert before.sparsity < between.sparsity < after.sparsity


def test_of_sixty_units_it_answers_within_fifty_milliseconds():
    units = ff.SurrogateEvaluator.synthetic(n_layers=30).units
    table = np.random.default_rng(0).normal(size=(9, len(units)))
    meaning = {"mapping": "waterfill", "a_min": 0.2, "a_max": 1.0, "action_scale": 3.0}
    policy = ff.Policy(np.linspace(0.1, 0.5, 9), table, units, meaning, (0.1, 0.5))
    assert len(units) == 60
    took = []
    for sparsity in (0.27, 0.33, 0.41, 0.12, 0.48):
        began = time.perf_counter()
        found = policy.allocate(sparsity)
        took.append(time.perf_counter() - began)
        assert sparsity <= found.sparsity < sparsity + 0.01
    assert min(took) < 0.05


def test_a_model_that_was_never_trained_is_written_as_the_run_would_have(own, allocate, text_file, caplog):
    caplog.set_level("INFO")
    code, out, _ = allocate(own, "--sparsity", 0.27, "--baselines", "--gguf", "f16")
    assert code == 0
    assert gguf.GGUFReader(own / "s27" / "model.gguf").fields["deci.block_count"].contents() == 3
    assert f"serve it:    llama-server -m {own / 's27' / 'model.gguf'}" in out
    assert f"train it:    ffprune recover {own / 's27'} --recover-minutes 10" in out
    assert "MiB, f16: 23 f16" in caplog.text
    assert "ranking" not in caplog.text.lower()
    best = best_of(own / "s27")
    assert best["chosen"]["kept"] == ff.Policy.load(own).allocate(0.27).kept.tolist()
    assert 0.27 <= best["chosen"]["sparsity"] < 0.3
    assert best["dense"]["test_ppl"] == pytest.approx(best_of(own / "s20")["dense"]["test_ppl"], rel=1e-6)
    model, tokenizer = ff.load_model(str(own / "s27" / "model"))
    test = ff.load_windows(str(text_file), tokenizer, "test", 64, 2)
    found = np.log(ff.perplexity(model, test))
    assert abs(found - np.log(best["calibration"]["chosen"]["test_ppl"])) < rounding_tolerance(model.dtype)
    for word in ("uniform", "searched, calibrated", "searched, from disk", f"ffprune bench-serving {own}"):
        assert word in out.replace("\n", " ")


def test_a_gguf_file_that_cannot_be_written_costs_the_model_nothing(own, allocate, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(answer_report, "export_gguf", full)
    code, _, error = allocate(own, "--sparsity", 0.33, "--gguf", "f16")
    assert code == 1
    (line,) = error.splitlines()
    model = own / "s33" / "model"
    assert line == f"error: {model} is written, and model.gguf could not be: No space left on device"
    assert "saved" in best_of(own / "s33")
    ff.load_pruned(model)


def test_at_a_sparsity_that_the_run_measured_nothing_is_lost(own, allocate):
    before = best_of(own / "s30")
    code, _, _ = allocate(own, "--sparsity", 0.3, 0.35, "--no-save-model")
    assert code == 0
    after = best_of(own / "s30")
    assert set(before["calibration"]) == set(after["calibration"])
    for name, result in before["calibration"].items():
        assert after["calibration"][name]["test_ppl"] == pytest.approx(result["test_ppl"], rel=1e-6)
    assert set(best_of(own / "s35")["calibration"]) == {"dense", "chosen"}
    assert not (own / "s35" / "model").exists()


def test_what_the_search_came_to_is_told_when_its_model_is_written(own, allocate, caplog):
    """And what it is compared with is not measured again."""
    before = best_of(own / "s20")
    caplog.set_level("INFO")
    assert allocate(own, "--sparsity", 0.2)[0] == 0
    after = best_of(own / "s20")
    measured = {"chosen", "dense", "calibration", "saved", "allocated_by"}
    assert {name: after[name] for name in before if name not in measured} == {
        name: before[name] for name in before if name not in measured
    }
    assert {"evaluations", "search_cost_windows", "seconds", "added_to_start", "cost"} <= before.keys() - measured
    assert {"search", "finalists", "total"} <= set(after["cost"])
    assert "saved" in after
    assert not [message for message in caplog.messages if "measuring uniform" in message]


def test_what_the_run_measured_stays_where_its_model_cannot_be_written(own, allocate, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    before = best_of(own / "s40")
    monkeypatch.setattr(saved_model, "save_pruned", full)
    written, write = [], RunFolder.write_json

    def note(self, name, content):
        write(self, name, content)
        if name == "best.json":
            written.append(best_of(self.path))

    monkeypatch.setattr(RunFolder, "write_json", note)
    code, _, error = allocate(own, "--sparsity", 0.4)
    assert code == 1
    assert "the model could not be written and read back: No space left on device" in error
    assert len(written) > 1
    for best in written:  # wherever it is cut off
        assert best["uniform"] == before["uniform"]
        assert best["calibration"]["uniform"] == before["calibration"]["uniform"]
        assert best["cost"] == before["cost"]


@pytest.mark.parametrize("change", ["kept", "scores", "target", "damaged"])
def test_nothing_is_told_of_another_answer(own, change):
    policy, folder = ff.Policy.load(own), RunFolder(own / "s30")
    answer = Answer("the policy", policy.scores(0.3), policy.allocate(0.3))
    known = told_before(folder, 0.3, answer, policy.units, RunFolder(own))
    assert known.search["evaluations"] == 16
    assert known.plain["uniform"].test_ppl == best_of(own / "s30")["uniform"]["test_ppl"]
    other = policy.allocate(0.3 if change != "kept" else 0.31)
    answer = Answer("the policy", answer.scores + (1e-3 if change == "scores" else 0), other)
    if change == "damaged":
        (own / "s30" / "best.json").write_text('{"chosen": 3, "target_sparsity": 0.3}')
    target = 0.25 if change == "target" else 0.3
    assert told_before(folder, target, answer, policy.units, RunFolder(own)) == ToldBefore()


def test_what_other_versions_measured_is_measured_again(own, allocate, caplog):
    """A table holds figures of one version: of those before, what the search came to is told alone."""
    caplog.set_level("INFO")
    identity = json.loads((own / "identity.json").read_text())
    (own / "identity.json").write_text(json.dumps(identity | {"torch": "1.13.0"}))
    before = best_of(own / "s20")
    for group in (before, before["calibration"]):
        group["uniform"]["test_ppl"] = 12345.0  # as those versions had it
    (own / "s20" / "best.json").write_text(json.dumps(before))
    assert allocate(own, "--sparsity", 0.2, "--no-save-model")[0] == 0
    after = best_of(own / "s20")
    assert "torch has changed from 1.13.0" in caplog.text
    assert {after["uniform"]["test_ppl"], after["calibration"]["uniform"]["test_ppl"]}.isdisjoint({12345.0})
    assert {name: after[name] for name in ("evaluations", "cost")} == {x: before[x] for x in ("evaluations", "cost")}
    # Those of now are kept, whatever the run was begun with.
    caplog.clear()
    assert allocate(own, "--sparsity", 0.2, "--no-save-model")[0] == 0
    assert "measuring uniform" not in caplog.text
    assert best_of(own / "s20")["uniform"] == after["uniform"]


def test_a_model_can_go_elsewhere(own, allocate, tmp_path, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert allocate(own.name, "--sparsity", 0.15, "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert not (own / "s15").exists()
    assert best_of(tmp_path / "out")["allocated_by"] == str(own.resolve())  # known from any folder


def test_what_cannot_be_allocated_gets_one_line_and_writes_nothing(own, whole, allocate, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(own, other, ignore=shutil.ignore_patterns(".lock"))
    identity = json.loads((other / "identity.json").read_text())
    (other / "identity.json").write_text(json.dumps(identity | {"weights": "others"}))
    edited = tmp_path / "edited"
    shutil.copytree(own, edited, ignore=shutil.ignore_patterns(".lock"))
    config = yaml.safe_load((edited / "config.yaml").read_text())
    (edited / "config.yaml").write_text(yaml.safe_dump(config | {"ridge": 0.5}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for words, message in (
        ((own, "--sparsity", 0.6), "the policy knows sparsities from 0.1 to 0.5, got 0.6: search there"),
        ((other, "--sparsity", 0.27), "have changed since"),
        ((edited, "--sparsity", 0.27), "--ridge has changed from 0.01 to 0.5 since"),
        ((own, "--sparsity", 0.27, "--out", tmp_path / "full"), "is not an empty folder: choose another"),
        ((tmp_path / "absent", "--sparsity", 0.27), "absent is not a run, there is no such folder"),
        ((whole, "--sparsity", 0.2), "was searched at sparsity 0.2, what it chose is in"),
    ):
        code, _, err = allocate(*words)
        assert code == 2
        (line,) = err.splitlines()
        assert message in line
        assert not (words[0] / "s27").exists()


def test_the_frontier_shows_what_was_asked_for_later_and_searches_beside_it(own, whole, allocate):
    assert allocate(own, "--sparsity", 0.25, "--no-save-model")[0] == 0
    points = frontier(own, [whole])
    chosen = {point.sparsity: point.later for point in points if point.policy == "chosen"}
    assert chosen == {**dict.fromkeys(TARGETS, False), 0.25: True}
    (alone,) = (point for point in points if point.policy == ALONE)
    assert (alone.sparsity, alone.test_ppl) == (0.2, best_of(whole)["calibration"]["chosen"]["test_ppl"])
    axes = frontier_plot(points, "tiny", "words").axes[0]
    names = {text.get_text(): text.xy[1] for text in axes.texts}
    assert set(names) == {"dense", "uniform", "ffn-only", "searched"}
    heights = sorted(height for name, height in names.items() if name != "dense")
    assert heights[0] > -0.2
    assert heights[-1] < 1.2
    assert np.diff(heights).min() > 0.06
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "asked for later",
        "a search for one σ alone",
    ]
    with pytest.raises(ValueError, match="is not of a search for one sparsity"):
        frontier(whole, [own])


def test_the_frontier_is_drawn_from_the_command_line(own, whole, monkeypatch, capsys, tmp_path):
    words = [own, "--beside", whole, "--no-files", "--image", tmp_path / "x.png"]
    monkeypatch.setattr(sys, "argv", ["evaluate/frontier.py", *map(str, words)])
    assert load_script("evaluate/frontier.py").main() == 0
    assert ALONE in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_scripts_that_read_runs_know_a_range(own, monkeypatch, capsys):
    compare_runs = load_script("evaluate/compare_runs.py")
    config = yaml.safe_load((own / "config.yaml").read_text())
    assert compare_runs.parts_of(own, config) == {target: own / f"s{100 * target:g}" for target in TARGETS}
    monkeypatch.setattr(sys, "argv", ["evaluate/reward_study.py", str(own)])
    assert load_script("evaluate/reward_study.py").main() == 2
    assert "is not of a search for one sparsity: study one that is" in capsys.readouterr().err
