"""--budget: met on what is written, told in best.json and at the end, and refused in a line where it cannot be."""

from __future__ import annotations

import json
import math

import pytest
from tiny_runs import assert_same, cut_off, run_main, settings

import ffprune_env as ff
from ffprune_env.run import budget_report
from ffprune_env.run.start_file import read_start, start_content
from ffprune_env.run.stored_amounts import stored_cache, stored_numbers
from ffprune_env.search.starts.start import StartScores
from ffprune_env.serving.latency import UnitTimes
from ffprune_env.serving.unit_times import ShapeTimes, shapes_of


def run_with(ppo_script, folder, text_file, run, *words, heads="balanced"):
    return run_main(ppo_script, [*settings(folder, text_file, run, heads=heads), "--init", "ffn-only", *words])


@pytest.mark.parametrize(
    ("words", "heads"),
    [
        (("parameters", "15%"), "balanced"),
        (("size", "0.85x"), "balanced"),
        (("kv", "0.67x"), "groups"),
        (("prunable", "30%"), "balanced"),
    ],
)
def test_it_is_met_on_disk(ppo_script, save_tiny, text_file, tmp_path, capsys, words, heads):
    run = tmp_path / "run"
    assert run_with(ppo_script, save_tiny("llama-gqa"), text_file, run, "--budget", *words, heads=heads) == 0
    found = json.loads((run / "best.json").read_text())
    budget = found["budget"]
    assert budget["asked"] == " ".join(words)
    there = {
        "parameters": lambda: sum(map(stored_numbers, (run / "model").glob("*.safetensors"))),
        "size": lambda: sum(file.stat().st_size for file in (run / "model").glob("*.safetensors")),
        "kv": lambda: stored_cache(run / "model"),
        "prunable": lambda: None,
    }[words[0]]()
    assert budget["written"] == there
    if there is None:
        assert found["chosen"]["sparsity"] >= 0.3
    else:
        assert there <= budget["at_most"] < budget["dense"]
    assert budget["predicted"] <= budget["at_most"]
    assert f"budget {words[0]} {words[1]}: dense " in capsys.readouterr().out
    card = (run / "model" / "README.md").read_text()
    assert f"| budget asked for | {words[0]} {words[1]} |" in card
    # The σ of a search is of what the budget counts; beside that of the prunable parameters it stands if it is of them.
    assert (f" ({found['target_sparsity']:.2%} asked for)" in card) == (words[0] != "kv")
    assert ("% asked for)" in card) == (words[0] != "kv")


def test_a_model_asked_for_later_does_not_call_the_share_of_a_cache_one_of_parameters(
    ppo_script, save_tiny, text_file, tmp_path, allocate
):
    run, words = tmp_path / "run", ("--budget", "kv", "0.67x", "--no-save-model", "--no-baselines")
    folder = save_tiny("llama-gqa")
    assert run_with(ppo_script, folder, text_file, run, *words, "--evaluations", "0", heads="groups") == 0
    sigma = ff.Policy.load(run).targets[0]
    assert allocate(run, "--sparsity", sigma, "--out", tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "| sparsity σ, of the prunable parameters |" in card
    assert "asked for" not in card


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("speed", "2x"), "unknown measure 'speed'"),
        (("size", "9GB"), "--budget size 9GB: the dense model has "),
        (("size", "1KB"), "--budget size 1KB cannot be met: with --a-min 0.2 at least "),
        (("kv", "0.5x"), "--budget kv 0.5x cannot be met: with --a-min 0.2 at least 192 B stay of 192 B"),
        (("size", "0.9x", "--sparsity", "0.2"), "--budget size 0.9x says how much goes: leave out --sparsity"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(ppo_script, save_tiny, text_file, tmp_path, capsys, words, says):
    folder = save_tiny("llama-gqa")
    capsys.readouterr()  # the bar of what saves the model
    try:
        code = run_with(ppo_script, folder, text_file, tmp_path / "run", "--budget", *words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_a_run_goes_on_with_its_budget(ppo_script, save_tiny, text_file, tmp_path):
    folder, run = save_tiny("llama-gqa"), tmp_path / "run"
    assert run_with(ppo_script, folder, text_file, run, "--budget", "kv", "0.67x", heads="groups") == 0
    best = json.loads((run / "best.json").read_text())
    (run / "best.json").unlink()
    assert run_main(ppo_script, ["--resume", run]) == 0
    again = json.loads((run / "best.json").read_text())
    assert again["budget"] == best["budget"]
    assert again["chosen"]["kept"] == best["chosen"]["kept"]
    assert run_main(ppo_script, ["--config", run / "config.yaml", "--run", tmp_path / "replayed"]) == 0
    replayed = json.loads((tmp_path / "replayed" / "best.json").read_text())
    assert replayed["chosen"]["kept"] == best["chosen"]["kept"]


def timed(monkeypatch, share):
    """Units take times that nobody measured: without a group of them the dense model takes this share of its time."""

    def unit_times(prunable, tokenizer, server):
        shapes = shapes_of(prunable.units)
        left = 1 - (1 - share) / len(shapes)
        every = [
            ShapeTimes(len(of), (1, prunable.units[of[0]].n_groups), {"prefill": (left, 1.0), "decode": (left, 1.0)})
            for of in shapes
        ]
        return UnitTimes({"prefill": 0.01 * share, "decode": 0.02 * share}, every)

    monkeypatch.setattr(budget_report, "unit_times", unit_times)
    # The written model takes just what may stay.
    monkeypatch.setattr(budget_report, "served_time", lambda *asked: round(0.75 * asked[3].dense["decode"] * 10**9))


def test_a_search_goes_on_with_the_times_that_it_began_with(ppo_script, save_tiny, text_file, tmp_path, monkeypatch):
    """On another machine, or with more threads, units take something else; the search is about what they took."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    timed(monkeypatch, 0.4)
    words = ("--budget", "decode", "0.75x", "--budget-server", "transformers", "--evaluations", "12")
    assert run_with(ppo_script, save_tiny("llama-gqa"), text_file, whole, *words) == 0
    assert len((whole / "samples.jsonl").read_text().splitlines()) == 12
    cut_off(whole, run, (whole / "samples.jsonl").stat().st_size // 2)
    timed(monkeypatch, 0.6)
    assert run_main(ppo_script, ["--resume", run]) == 0
    assert_same(run, whole)
    best, counted = (json.loads((run / name).read_text()) for name in ("best.json", "budget.json"))
    assert best["budget"]["dense"] == counted["dense"] == round(0.02 * 0.4 * 10**9)
    assert best["budget"]["written"] == best["budget"]["at_most"]


@pytest.mark.parametrize("trusted", [True, False])
def test_a_server_runs_the_code_of_a_model_only_where_that_is_trusted(
    ppo_script, save_tiny, text_file, tmp_path, monkeypatch, trusted
):
    timed(monkeypatch, 0.4)
    times, servers = budget_report.unit_times, []

    def noted(prunable, tokenizer, server):
        servers.append(server)
        return times(prunable, tokenizer, server)

    monkeypatch.setattr(budget_report, "unit_times", noted)
    words = ("--budget", "decode", "0.75x", "--budget-server", "transformers", "--evaluations", "4", "--no-save-model")
    flags = (*words, "--trust-remote-code") if trusted else words
    assert run_with(ppo_script, save_tiny("llama-gqa"), text_file, tmp_path / "run", *flags) == 0
    assert [server.job.trust_remote_code for server in servers] == [trusted]


def test_a_kill_before_the_start_is_written_down_costs_nothing(ppo_script, save_tiny, text_file, tmp_path, monkeypatch):
    """Nothing was measured under the first times by then, so that those of now do as well."""
    run = tmp_path / "run"
    timed(monkeypatch, 0.4)
    words = ("--budget", "decode", "0.75x", "--budget-server", "transformers", "--evaluations", "4")
    assert run_with(ppo_script, save_tiny("llama-gqa"), text_file, run, *words) == 0
    for name in ("samples.jsonl", "measured.jsonl", "start.json", "budget.json", "best.json"):
        (run / name).unlink(missing_ok=True)
    timed(monkeypatch, 0.6)
    assert run_main(ppo_script, ["--resume", run]) == 0
    assert json.loads((run / "budget.json").read_text())["dense"] == round(0.02 * 0.6 * 10**9)


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"measure": "kv", "dense": 96, "per_weight": 1, "costs": [[0]]}']
)
def test_a_damaged_file_of_what_was_counted_gets_a_line(ppo_script, save_tiny, text_file, tmp_path, capsys, content):
    folder, run = save_tiny("llama-gqa"), tmp_path / "run"
    assert run_with(ppo_script, folder, text_file, run, "--budget", "kv", "0.67x", heads="groups") == 0
    (run / "budget.json").write_text(content)
    capsys.readouterr()
    assert run_main(ppo_script, ["--resume", run]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "budget.json" in line


def test_a_start_of_another_sparsity_is_not_called_damaged(tmp_path):
    file = tmp_path / "start.json"
    file.write_text(json.dumps(start_content(StartScores({0.2107: [0.0, 1.0]}, {}))))
    assert read_start(file, [0.2107], 2).targets.keys() == {0.2107}
    with pytest.raises(ValueError, match=r"start\.json is of a search for sparsity 0\.2107,") as refused:
        read_start(file, [0.2107 + math.ulp(1)], 2)
    assert "and this one is for 0.2107" in str(refused.value)
    assert "damaged" not in str(refused.value)
    assert "\n" not in str(refused.value)
