"""--budget: met on what is written, told in best.json and at the end, and refused in a line where it cannot be."""

from __future__ import annotations

import json

import pytest
from tiny_runs import run_main, settings

from ffprune_env.run.budget_report import stored_cache, stored_numbers


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
