"""A run that takes its start as it is: what damage curves say needs no search, where none adds anything."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from conftest import load_script
from tiny_runs import best_of, run_main, settings

import ffprune_env as ff
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.search.added import Added
from ffprune_env.search.affordable import most_windows, windows_at_last
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import run_search
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.parse import parse_start

CURVES = SurrogateEvaluator.synthetic(n_layers=6, seed=3)


def flags_without_evaluations(*where, **changes):
    flags = settings(*where, **changes)
    for name in ("--evaluations", "--rollout"):
        at = flags.index(name)
        flags = flags[:at] + flags[at + 2 :]
    return flags


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 0),
        ({"init": "fisher"}, 0),
        ({"init": "ffn-only"}, 96),
        ({"init": "none", "sparsity": (0.2, 0.3)}, 192),
        ({"init": "fisher", "evaluations": 10}, 10),
        ({"init": "ffn-only", "evaluations": 0}, 0),
        ({"mapping": "greedy"}, 96),  # which starts from nothing, whatever is asked for
    ],
)
def test_how_long_a_search_is_follows_from_what_its_start_knows(changes, wanted):
    asked = SearchSettings(**changes)
    asked.require_allowed()
    assert asked.wanted == wanted
    assert (asked.total == 0) == (wanted == 0)
    assert most_windows(asked) >= windows_at_last(asked)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evaluations": 1}, "--evaluations must be at least 2, got 1"),
        ({"evaluations": -1}, "--evaluations must be at least 2, got -1"),
        (
            {"evaluations": 0, "init": "none"},
            "--init none knows nothing: it needs a search, --evaluations must be 2 or more",
        ),
        ({"evaluations": 0, "mapping": "greedy"}, "the start of --mapping greedy knows nothing: it needs a search"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        SearchSettings(**changes).require_allowed()


@pytest.mark.parametrize("sparsity", [0.3, (0.2, 0.3)])
def test_without_a_search_the_answer_is_the_start_or_ffn_only(sparsity):
    asked = SearchSettings(sparsity=sparsity, init="ffn-only", evaluations=0)
    start = parse_start(asked)
    scores = start.scores(Problem.of(CURVES, 0.3), asked.targets)
    outcome = run_search(asked, CURVES, start, scores)
    assert outcome.samples == []
    assert {answer.name for answer in outcome.answers.values()} == {"the start"}
    for at, known in scores.everywhere.items():
        np.testing.assert_array_equal(outcome.learned.scores(at), known)
    assert outcome.told().startswith("no search was made (--evaluations makes one): the start (ffn-only) is the answer")
    behind = Added("ffn-only", 0.1, 8, "the start", 0.1).told("fisher", 16, None)
    assert behind.endswith(
        "ffn-only, not the start (fisher), is the answer; the start comes next, +0.1000 nats per token on 8 windows"
    )


def test_a_run_from_damage_curves_ends_without_one_and_answers_sparsities_around(
    ppo_script, tiny_folder, text_file, tmp_path
):
    run = tmp_path / "run"
    flags = flags_without_evaluations(tiny_folder, text_file, run, init="fisher")
    with ppo_script.console.capture() as said:
        assert run_main(ppo_script, flags) == 0
    best = best_of(run)
    assert best["evaluations"] == 0
    assert best["added_to_start"]["chosen"] in ("the start", "ffn-only")
    assert f"no search, {best['added_to_start']['chosen']} as it is; files in" in said.get()
    assert not (run / "samples.jsonl").exists()
    assert {path.name for path in (run / "plots").iterdir()} == {"retention.png"}
    assert (run / "model" / "config.json").is_file()
    assert ff.Policy.load(run).allocate(0.27).sparsity >= 0.27
    (run / "best.json").unlink()
    assert run_main(ppo_script, ["--resume", run]) == 0
    assert best_of(run) == best


def test_a_range_can_be_answered_by_curves_alone(ppo_script, tiny_folder, text_file, tmp_path):
    run = tmp_path / "run"
    flags = flags_without_evaluations(tiny_folder, text_file, run, init="fisher", sparsity="0.2:0.4")
    with ppo_script.console.capture() as said:
        assert run_main(ppo_script, [*flags, "--no-baselines"]) == 0
    assert re.search("no search, (the start|ffn-only) as it is; files in", said.get())
    known = json.loads((run / "start.json").read_text())["targets"]
    assert {float(at) for at in known} == {0.2, 0.25, 0.3, 0.35, 0.4}
    assert (run / "plots" / "frontier.png").is_file()


@pytest.mark.parametrize(
    ("sparsity", "known", "folder"), [(0.2, "from 0.1 to 0.3", "s25"), (0.7, "from 0.35 to 0.7", "s52.5")]
)
def test_a_run_says_how_to_get_another_sparsity_and_that_works(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, sparsity, known, folder
):
    """Half-way to the highest that it knows, or where that is its own to the lowest."""
    run = tmp_path / "run"
    flags = flags_without_evaluations(tiny_folder, text_file, run, init="fisher", sparsity=sparsity)
    with ppo_script.console.capture() as said:
        assert run_main(ppo_script, [*flags, "--no-baselines"]) == 0
    (line,) = (line for line in said.get().splitlines() if line.startswith("another σ:"))
    assert line.endswith(f"({known}, without another search)")
    command = line.removeprefix("another σ:").split("(")[0].split()
    assert command[:2] == ["ffprune", "allocate"]
    monkeypatch.setattr(sys, "argv", ["evaluate/allocate.py", *command[2:]])
    assert load_script("evaluate/allocate.py").main() == 0
    assert (run / folder / "model" / "config.json").is_file()
