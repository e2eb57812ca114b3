"""A run that was cut off goes on and ends as if nothing had happened; nobody else can write into it meanwhile."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file
from tiny_runs import SCRIPT, assert_same, best_of, cut_off, run_main, samples_of, settings

from ffprune_env.cli import model_flags
from ffprune_env.search.starts.fisher_iterated import FisherIterated


@pytest.mark.parametrize("part", [0.0, 0.04, 0.31, 0.5, 0.77, 0.999, 1.0])
def test_resume_ends_as_if_nothing_had_happened(ppo_script, whole, tmp_path, part, caplog):
    size = (whole / "samples.jsonl").stat().st_size
    cut_off(whole, tmp_path / "run", round(part * size))
    torn = not (tmp_path / "run" / "samples.jsonl").read_bytes().endswith(b"\n") and part > 0
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    assert_same(tmp_path / "run", whole)
    assert ("broken" in caplog.text) is torn


def test_what_was_measured_is_not_measured_again(ppo_script, whole, tmp_path, monkeypatch):
    cut_off(whole, tmp_path / "run", (whole / "samples.jsonl").stat().st_size)
    asked = []
    evaluator = sys.modules["ffprune_env.evaluators.language_model"]
    measure = evaluator._perplexity
    monkeypatch.setattr(evaluator, "_perplexity", lambda *a: asked.append(a) or measure(*a))
    monkeypatch.setattr(FisherIterated, "scores", lambda *a: pytest.fail("the start was looked for again"))
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    dense, dense_on_those_to_watch, finalists = 2, 4, 7
    assert len(asked) <= dense + dense_on_those_to_watch + finalists


@pytest.mark.parametrize("lost", [["manifest.json", "start.json", "samples.jsonl"], ["start.json", "samples.jsonl"]])
def test_a_kill_while_the_folder_is_made_loses_nothing(ppo_script, whole, tmp_path, lost):
    cut_off(whole, tmp_path / "run", 0)
    for name in lost:
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    assert_same(tmp_path / "run", whole)


def test_a_run_goes_on_with_the_order_that_it_began_with(ppo_script, whole, tmp_path, other_scores):
    cut_off(whole, tmp_path / "run", (whole / "samples.jsonl").stat().st_size // 2)
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    assert_same(tmp_path / "run", whole)
    orders = [(run / "order.json").read_bytes() for run in (tmp_path / "run", whole)]
    assert orders[0] == orders[1]


def everything(run):
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_run_that_cannot_go_on_keeps_all_it_has(ppo_script, whole, tmp_path, capsys):
    """Refused while it is prepared, or in the middle of the search: model, events and checkpoint stay."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    config, log = run / "config.yaml", run / "samples.jsonl"
    good = config.read_text()
    config.write_text(good.replace("model: /", "model: /nowhere/"))
    before = everything(run)
    assert run_main(ppo_script, ["--resume", run]) == 2
    assert everything(run) == before
    config.write_text(good)
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:9], tampered(lines[9], scores=[0.0] * 6), *lines[10:]]) + "\n")
    before = everything(run)
    assert run_main(ppo_script, ["--resume", run]) == 1
    after = everything(run)
    assert {name: after[name] for name in before} == before
    assert "goes on" not in capsys.readouterr().err


@pytest.fixture
def movable(whole, tiny_folder, text_file, tmp_path):
    """A run that was cut off, and a model and texts of its own; where they lie makes no difference."""
    run, model = tmp_path / "run", tmp_path / "model"
    cut_off(whole, run, sum(map(len, (whole / "samples.jsonl").read_bytes().splitlines(keepends=True)[:6])))
    shutil.copytree(tiny_folder, model)
    text = shutil.copy(text_file, tmp_path / "words.txt")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": str(model), "text": str(text)}))
    return run


def change_weights(run):
    file = run.parent / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] *= 2
    save_file(weights, file, metadata={"format": "pt"})


def change_config(run):
    file = run.parent / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 1e-4}))


def change_text(part):
    """Another word in a part of the text: it begins with what is searched on, and ends with what is tested on."""

    def change(run):
        file = run.parent / "words.txt"
        lines = file.read_text().splitlines()
        first, last = (int(share * len(lines)) for share in part)
        lines[first:last] = [line.replace("says", "said") for line in lines[first:last]]
        file.write_text("\n".join(lines))

    return change


def change_setting(name, value):
    """As by hand, between two parts of one search."""

    def change(run):
        file = run / "config.yaml"
        config = yaml.safe_load(file.read_text())
        assert config[name] != value
        file.write_text(yaml.safe_dump(config | {name: value}))

    return change


def change_tokenizer(run):
    byte_tokenizer([("i", "n")]).save_pretrained(run.parent / "model")


def change_record(name, value):
    """As if the run was begun by another version."""

    def change(run):
        file = run / "identity.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

    return change


def change_order(unit, order):
    def change(run):
        file = run / "order.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {unit: order}))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (change_weights, "the weights of .*/model have changed since .*/run was begun: start a new run"),
        (change_config, "the config of .*/model has changed since"),
        (change_tokenizer, "the search text .*/words.txt has changed since"),
        (change_setting("ridge", 0.9), "--ridge has changed from 0.01 to 0.9 since .*/run was begun: start a new run"),
        (change_setting("search_windows", 1), "--search-windows has changed from 2 to 1 since"),
        (change_setting("evaluations", 20), "--evaluations has changed from 12 to 20 since"),
        (change_setting("reward_model", "cut"), '--reward-model has changed from "calibrated" to "cut" since'),
        (change_setting("criterion", "wanda"), '--criterion has changed from "surgeon" to "wanda" since'),
        (change_setting("calibration", "ridge"), '--calibration has changed from "sequential" to "ridge" since'),
        (change_setting("test_windows", 1), "--test-windows has changed from 2 to 1 since"),
        (change_text((0.0, 0.2)), "the search text .*/words.txt has changed since"),
        (change_text((0.3, 0.6)), "the calibration text .*/words.txt has changed since"),
        (change_text((0.62, 0.9)), "the test text .*/words.txt has changed since"),
        (change_record("transformers", "5.0.0"), "transformers has changed from 5.0.0 to 5"),
        (change_record("torch", "2.0.0"), "torch has changed from 2.0.0 to 2"),
        (change_record("source", "0" * 32), "the source of ffprune has changed since"),
        (change_record("dtype", "torch.float64"), "dtype of .*/model has changed from torch.float64 to torch"),
        (lambda run: (run / "identity.json").unlink(), "holds no identity.json"),
        (lambda run: (run / "identity.json").write_text("[]"), "identity.json is damaged"),
        (
            lambda run: (run / "order.json").unlink(),
            "holds no order.json, .* which heads and channels it measured: start",
        ),
        (
            change_order("model.layers.1.self_attn", "0 1 2 2"),
            "of model.layers.1.self_attn it must hold each of 0 to 3",
        ),
        (
            change_order("model.layers.9.mlp", "0"),
            "order.json does not fit the model: model.layers.9.mlp is not in the",
        ),
    ],
)
def test_a_run_does_not_go_on_with_something_else(ppo_script, movable, capsys, change, says):
    change(movable)
    before = everything(movable)
    assert run_main(ppo_script, ["--resume", movable]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line
    assert everything(movable) == before


def test_a_run_goes_on_with_the_same_somewhere_else(ppo_script, movable, whole):
    change_setting("device", "cpu")(movable)  # what is found is the same
    change_setting("batch_size", 2)(movable)
    assert run_main(ppo_script, ["--resume", movable]) == 0
    assert samples_of(movable) == samples_of(whole)


def test_an_upgrade_is_noticed_before_a_model_is_loaded(ppo_script, movable, monkeypatch, capsys):
    monkeypatch.setattr(model_flags, "load_model", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(sys.modules["ffprune_env.lm.identity"], "source_digest", lambda package: "edited")
    assert run_main(ppo_script, ["--resume", movable]) == 2
    assert "the source of ffprune has changed" in capsys.readouterr().err


def test_the_policy_that_a_run_started_from_is_kept(ppo_script, whole, tiny_folder, text_file, tmp_path, caplog):
    caplog.set_level("INFO")
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    started = tmp_path / "whole"
    flags = settings(tiny_folder, text_file, started, init=other, sparsity=0.3)
    assert run_main(ppo_script, flags) == 0
    # What the other run saw is not known here.
    assert f"windows that neither this search nor its start saw, whatever {other} did" in " ".join(caplog.text.split())
    cut_off(started, tmp_path / "run", (started / "samples.jsonl").stat().st_size // 2)
    shutil.rmtree(other)
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    assert_same(tmp_path / "run", started)


def test_a_finished_run_may_be_resumed(ppo_script, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    assert_same(tmp_path / "run", whole)


def test_events_are_those_of_one_search(ppo_script, whole, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cut_off(whole, tmp_path / "run", (whole / "samples.jsonl").stat().st_size // 2)
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    logged = [EventAccumulator(str(run / "tb")).Reload() for run in (tmp_path / "run", whole)]
    rewards = [
        {tag: [(x.step, x.value) for x in events.Scalars(tag)] for tag in events.Tags()["scalars"] if "reward" in tag}
        for events in logged
    ]
    assert {"search_on_1/reward", "search_on_2/reward"} <= rewards[0].keys()
    assert rewards[0] == rewards[1]


def tampered(line, **changes):
    return json.dumps(json.loads(line) | changes)


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda x: [x[0], tampered(x[1], ppl=1.0), *x[2:]], "is not of this search: ppl|reward of step"),
        (lambda x: [tampered(x[0], scores=[0.0] * 6), *x[1:]], "is not of this search: scores of step 0"),
        (lambda x: [x[0], *x[2:]], "line 2 of .* step 2 where 1 is due"),
        (lambda x: [x[0], "{}", *x[2:]], "line 2 of .* is not sample 1"),
        (lambda x: [x[0], "\x00\x00", *x[2:]], "line 2 of .* is not sample 1"),
        (lambda x: [tampered(x[0], kept=[99] * 6), *x[1:]], "kept|groups"),
        (lambda x: [tampered(x[0], ppl="lots"), *x[1:]], "ppl is 'lots', a number is needed"),
    ],
)  # fmt: skip
def test_tampered_samples_are_refused_and_kept(ppo_script, whole, tmp_path, capsys, tamper, says):
    cut_off(whole, tmp_path / "run", (whole / "samples.jsonl").stat().st_size)
    log = tmp_path / "run" / "samples.jsonl"
    log.write_text("\n".join(tamper(log.read_text().splitlines())) + "\n")
    before = log.read_bytes()
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line
    assert log.read_bytes() == before


def test_who_resumes_nothing_is_told(ppo_script, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, reason in (("empty", "it has no config.yaml"), ("none", "there is no such folder")):
        assert run_main(ppo_script, ["--resume", tmp_path / folder]) == 2
        assert f"is not a run, {reason}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_resume_takes_no_other_settings(ppo_script, whole, capsys):
    assert run_main(ppo_script, ["--resume", whole, "--seed", "3"]) == 2
    assert "leave out --seed" in capsys.readouterr().err


def test_one_folder_one_process(ppo_script, whole, tmp_path, capsys):
    run = tmp_path / "run"
    cut_off(whole, run, 0)
    hold = f"import filelock, time; lock = filelock.FileLock({str(run / '.lock')!r}); lock.acquire()"
    script = f"{hold}; print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert run_main(ppo_script, ["--resume", run]) == 2
        assert "another process works on run folder" in capsys.readouterr().err
        assert not (run / "best.json").exists()
    finally:
        holder.send_signal(signal.SIGKILL)  # and the system takes the lock off
        holder.wait()
    assert run_main(ppo_script, ["--resume", run]) == 0


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path, tiny_folder, text_file, whole):
    """kill -9 until the run is through; the moments cover start, search, checkpoints and the writing of the model."""
    rng = random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    kills, torn, wanted, differences = 0, 0, 30, 0
    while kills < wanted:
        run = tmp_path / f"run{kills}"
        begin = [sys.executable, str(SCRIPT), *settings(tiny_folder, text_file, run)]
        started = time.monotonic()
        while True:
            command = [sys.executable, str(SCRIPT), "--resume", str(run)] if (run / "config.yaml").exists() else begin
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            # A process that has a folder to write into is killed within what a run takes from there.
            while process.poll() is None and not (run / "config.yaml").exists():
                time.sleep(0.001)
            pause = rng.uniform(0.0, 1.5) if command is begin else rng.uniform(3.0, 9.0)
            try:
                process.wait(pause)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                log = run / "samples.jsonl"
                torn += log.exists() and not log.read_bytes().endswith(b"\n")
                continue
            assert process.returncode == 0, process.stderr.read().decode()
            break
        differences += samples_of(run) != samples_of(whole) or best_of(run) != best_of(whole)
        assert time.monotonic() - started < 600
    print(f"{kills} kills, {torn} torn lines, {differences} runs that differ")
    assert differences == 0
    assert np.isfinite(best_of(run)["chosen"]["test_ppl"])
