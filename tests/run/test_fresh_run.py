"""Runs on fresh windows, and runs that stop by themselves: they resume, and their files say what was measured."""

from __future__ import annotations

import json
import sys

import pytest
from tiny_runs import assert_same, best_of, cut_off, run_main, samples_of, settings

from ffprune_env.run.sample_log import SampleLog

FRESH = ["--fresh-windows", "--pool-windows", "5", "--eval-every", "0", "--no-save-model", "--no-baselines"]
PATIENT = ["--patience", "2", "--watch-windows", "2"]


@pytest.fixture(scope="module", params=["ppl", "kl"])
def fresh(request, ppo_script, tiny_folder, text_file, tmp_path_factory):
    """The folder of such a run that nothing happened to."""
    run = tmp_path_factory.mktemp("fresh") / "run"
    flags = settings(tiny_folder, text_file, run, evaluations=16, init="ffn-only", reward=request.param)
    assert run_main(ppo_script, [*flags, *FRESH, *PATIENT]) == 0
    return run


def test_its_files_say_what_was_measured(fresh):
    samples, best = samples_of(fresh), best_of(fresh)
    assert all(len(sample["windows"]) == sample["n_samples"] for sample in samples)
    assert all(set(sample["windows"]) <= set(range(5)) for sample in samples)
    assert all(sample["start_reward"] > 0 for sample in samples)
    assert (best["windows"]["pool"], best["windows"]["watch"]) == (5, 2)
    added = best["added_to_start"]
    assert "start" not in added  # config.yaml says where that was
    assert added["windows"] == 2
    assert (added["nats"] == 0) == (added["chosen"] == "the start")
    sets = {tuple(sample["windows"]) for sample in samples}
    beside = [json.loads(line) for line in (fresh / "measured.jsonl").read_text().splitlines()]
    assert {tuple(windows) for _, windows, _, _ in beside} == sets | {(5, 6)}  # of the start, and what was watched
    of_search = sum(sample["n_samples"] for sample in samples) + sum(map(len, sets)) + len(set().union(*sets))
    watched = sum(len(windows) for _, windows, _, _ in beside if windows == [5, 6])
    assert best["search_cost_windows"] >= of_search + watched + 2  # a finalist, the start at least
    identity = json.loads((fresh / "identity.json").read_text())
    assert {"pool text", "watch text", "--fresh-windows", "--patience"} <= identity.keys()


@pytest.mark.parametrize("part", [0.0, 0.62])
def test_it_goes_on_as_if_nothing_had_happened(ppo_script, fresh, tmp_path, part):
    cut_off(fresh, tmp_path / "run", round(part * (fresh / "samples.jsonl").stat().st_size))
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    assert_same(tmp_path / "run", fresh)
    noted = [(run / "measured.jsonl").read_text() for run in (tmp_path / "run", fresh)]
    assert noted[0] == noted[1]


def test_what_was_measured_beside_is_not_measured_again(ppo_script, fresh, tmp_path, monkeypatch):
    cut_off(fresh, tmp_path / "run", (fresh / "samples.jsonl").stat().st_size)
    evaluator = sys.modules["ffprune_env.evaluators.language_model"].LMEvaluator
    monkeypatch.setattr(evaluator, "_chosen", only_dense(evaluator._chosen))
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    assert_same(tmp_path / "run", fresh)


def only_dense(chosen):
    """What is asked for when an evaluator is built or reported: the first windows, and none by index."""

    def look(self, n_samples):
        assert isinstance(n_samples, int), "a rollout was measured again"
        return chosen(self, n_samples)

    return look


def test_patience_stops_a_run(ppo_script, tiny_folder, text_file, tmp_path, caplog):
    caplog.set_level("INFO")
    run = tmp_path / "run"
    flags = settings(tiny_folder, text_file, run, evaluations=80, init="ffn-only")
    timid = ["--learning-rate", "1e-12", "--no-save-model", "--no-baselines"]  # the mean stays where it is
    assert run_main(ppo_script, [*flags, *timid, *PATIENT]) == 0
    assert len(samples_of(run)) == best_of(run)["evaluations"] == 12
    said = " ".join(caplog.text.split())
    assert "patience: stopped after 12 evaluations" in said
    assert "its start (ffn-only)" in said
    cut_off(run, tmp_path / "again", (run / "samples.jsonl").stat().st_size // 2)
    assert run_main(ppo_script, ["--resume", tmp_path / "again"]) == 0
    assert_same(tmp_path / "again", run)


def test_samples_of_before_are_read(whole, tmp_path):
    lines = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    old = [{name: value for name, value in line.items() if name not in ("windows", "start_reward")} for line in lines]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    recorded = SampleLog(tmp_path / "samples.jsonl").recorded
    assert [sample.windows for sample in recorded] == [None] * len(lines)
    assert [sample.merit for sample in recorded] == [line["reward"] for line in lines]
