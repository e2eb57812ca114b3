"""Runs that are rewarded with questions or functions: what they report, and how they go on."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import load_script
from tiny_runs import assert_same, best_of, cut_off, run_main, samples_of, settings

PLAIN = ("--init", "ffn-only", "--no-save-model")
FUNCTION = """
import torch


def zeros(model, tokenizer):
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 60)[None]).logits[0]
    return float((logits.argmax(-1) % 2 == 0).double().mean())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the user is, with questions and a function."""
    folder, rng = tmp_path_factory.mktemp("user"), np.random.default_rng(0)

    def said():
        return "".join(rng.choice(list("abcdefgh"), 9))

    rows = [
        {"question": said(), "choices": [said(), said(), said()], "answer": int(rng.integers(3))} for _ in range(90)
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "judging.py").write_text(FUNCTION)
    return folder


@pytest.fixture
def run_of(ppo_script, tiny_folder, text_file, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)

    def run(reward, *words, name="run", **changes):
        flags = settings(tiny_folder, text_file, tmp_path / name, **changes)
        code = run_main(ppo_script, [*flags, *PLAIN, "--reward", *reward.split(), *words])
        return code, tmp_path / name

    return run


@pytest.mark.parametrize("reward", ["tasks:q.jsonl", "ppl=0.5 kl=1 tasks:q.jsonl=0.5", "judging:zeros", "kl"])
def test_a_run_reports_what_is_held_out_and_goes_on(ppo_script, run_of, tmp_path, reward):
    code, whole = run_of(reward, "--patience", "9", "--watch-windows", "2")
    assert code == 0
    best = best_of(whole)
    named = {"tasks": {"margin", "accuracy"}, "ppl": {"ppl"}, "kl": {"kl"}, "judgi": {"value"}}
    expected = {"loss"}.union(*(x for name, x in named.items() if name in reward))
    for name in ("dense", "uniform", "ffn-only", "chosen"):
        assert set(best[name]["held_out"]) == expected
        assert best["calibration"][name]["held_out"]["loss"] == pytest.approx(best[name]["held_out"]["loss"], abs=2)
    if "ppl" in reward:
        assert best["chosen"]["held_out"]["ppl"] == pytest.approx(best["chosen"]["test_ppl"], rel=1e-6)
    cut_off(whole, tmp_path / "cut", len((whole / "samples.jsonl").read_bytes()) // 2)
    assert run_main(ppo_script, ["--resume", tmp_path / "cut"]) == 0
    assert_same(tmp_path / "cut", whole)


def test_what_a_search_added_is_told_in_its_own_unit(run_of, caplog, tmp_path):
    caplog.set_level("INFO")
    assert run_of("tasks:q.jsonl")[0] == 0
    (line,) = [x.getMessage() for x in caplog.records if x.getMessage().startswith("PPO added")]
    assert "per token" not in line
    assert "of PPL" not in line
    added = best_of(tmp_path / "run")["added_to_start"]
    assert "nats" in added
    assert "percent" not in added


def test_a_run_of_text_alone_reports_nothing_more(whole):
    assert best_of(whole)["chosen"]["held_out"] is None


@pytest.mark.parametrize(("reward", "file"), [("tasks:q.jsonl", "q.jsonl"), ("judging:zeros", "judging.py")])
def test_a_run_does_not_go_on_with_other_questions_or_another_function(
    ppo_script, run_of, place, tmp_path, capsys, reward, file, monkeypatch
):
    code, whole = run_of(reward)
    assert code == 0
    other = tmp_path / "elsewhere"
    shutil.copytree(place, other)
    content = (other / file).read_text()
    (other / file).write_text(content.replace('"answer": 1', '"answer": 0', 1).replace("% 2 == 0", "% 3 == 0"))
    monkeypatch.chdir(other)
    monkeypatch.delitem(__import__("sys").modules, "judging", raising=False)
    capsys.readouterr()
    assert run_main(ppo_script, ["--resume", whole]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "changed since" in line


def test_a_function_that_fails_in_the_middle_loses_nothing(ppo_script, run_of, place, capsys, monkeypatch):
    module = (
        FUNCTION
        + "\n\ncalls = []\n\n\ndef moody(model, tokenizer):\n    calls.append(0)\n"
        + ("    return zeros(model, tokenizer) / (0 if len(calls) == 6 else 1)\n")
    )
    (place / "moods.py").write_text(module)
    code, run = run_of("moods:moody")
    assert code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the reward moods:moody raised ZeroDivisionError" in line
    assert "--resume" in line
    before = samples_of(run)
    assert before
    assert run_main(ppo_script, ["--resume", run]) == 0
    assert samples_of(run)[: len(before)] == before


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("judging:nothing", "judging has no function nothing, it has zeros"),
        ("tasks:none.jsonl", "there is no file none.jsonl"),
        ("pppl", "unknown reward 'pppl'"),
    ],
)
def test_bad_rewards_are_refused_in_one_line(run_of, capsys, reward, says):
    try:
        code, run = run_of(reward)
    except SystemExit as stop:  # what is no reward is no value of the flag
        code, run = stop.code, None
    assert code == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert run is None or not (run / "samples.jsonl").exists()


def test_workers_measure_the_same(run_of):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        runs = [run_of("ppl=0.5 tasks:q.jsonl=0.5", name=f"w{n}", workers=n, evaluations=8) for n in (1, 2)]
    finally:
        ray.shutdown()
    assert [code for code, _ in runs] == [0, 0]
    assert samples_of(runs[0][1]) == samples_of(runs[1][1])


@pytest.mark.parametrize("reward", ["kl", "tasks:q.jsonl", "judging:zeros"])
def test_methods_of_a_comparison_minimize_what_is_rewarded(compare, place, monkeypatch, reward):
    monkeypatch.chdir(place)
    code, out, err = compare("--methods", "uniform", "evolution", "ppo", "--reward", reward, "--final-windows", "2")
    assert code == 0, err
    assert "evolution" in out
    cells = json.loads((compare.out / "comparison.json").read_text())["cells"]
    assert {cell["method"] for cell in cells} == {"uniform", "evolution", "ppo"}
    assert all(cell["search_ppl"] > 50 for cell in cells)  # of text, whatever was rewarded
    assert all(cell["held_out"]["loss"] != 0 for cell in cells)
    code, _, err = compare("--methods", "uniform", "--final-windows", "2")
    assert code == 2
    assert "was made with reward" in err


def test_the_reward_of_a_run_is_known_of_every_model_in_it(tmp_path):
    """Also of one sparsity of several, of what was allocated later, and of what was recovered."""
    script = load_script("evaluate/zero_shot.py")
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run / "model", run / "s30" / "model", run / "s30" / "recovered", elsewhere / "model"):
        folder.mkdir(parents=True)
    (run / "config.yaml").write_text("reward: tasks:piqa\nsparsity: 0.3\n")
    (elsewhere / "best.json").write_text(json.dumps({"allocated_by": str(run)}))
    for model in (run / "model", run / "s30" / "model", run / "s30" / "recovered", elsewhere / "model"):
        assert script.reward_of_run(str(model)) == "tasks:piqa"
    for model in ("smollm2-135m", str(tmp_path / "other" / "model")):
        assert script.reward_of_run(model) == "ppl"


def test_the_reward_of_a_run_is_known_from_wherever_it_is_asked(tmp_path, monkeypatch):
    """From inside the model, from elsewhere, of a run that was moved; and where nobody knows it that is said."""
    script = load_script("evaluate/zero_shot.py")
    run, other, elsewhere = (tmp_path / name for name in ("run", "other", "elsewhere"))
    for folder in (run / "s30" / "model", other / "out" / "model", elsewhere / "model"):
        folder.mkdir(parents=True)
    (run / "config.yaml").write_text("reward: tasks:piqa\nsparsity: 0.3\n")
    (other / "config.yaml").write_text("reward: ppl\nsparsity: 0.3\n")
    for folder, by in ((run / "s30", run), (other / "out", run), (elsewhere, "run")):
        (folder / "best.json").write_text(json.dumps({"allocated_by": str(by)}))
    monkeypatch.chdir(run / "s30" / "model")
    assert script.reward_of_run(".") == "tasks:piqa"
    monkeypatch.chdir(tmp_path)
    assert script.reward_of_run("other/out/model") == "tasks:piqa"  # the folder that it lies in is not its run
    assert script.reward_of_run("elsewhere/model") == "tasks:piqa"  # as earlier versions wrote it
    (tmp_path / "best.json").write_text(json.dumps({"allocated_by": "run"}))
    assert script.reward_of_run("smollm2-135m") == "ppl"
    monkeypatch.chdir(other)
    says = "elsewhere/best.json says that run allocated this model, and there is no config.yaml in that: nobody knows"
    with pytest.raises(ValueError, match=says):
        script.reward_of_run(str(elsewhere / "model"))
    assert script.reward_of_run(str(elsewhere / "model"), held_out=True) == "ppl"
    (tmp_path / "moved").mkdir()
    run.rename(tmp_path / "moved" / "run")
    assert script.reward_of_run(str(tmp_path / "moved" / "run" / "s30" / "model")) == "tasks:piqa"
    with pytest.raises(ValueError, match="put the run back there, or add --held-out"):
        script.reward_of_run(str(other / "out" / "model"))
