"""`--max-loss` and its like: the smallest model, checked on the model that was written; what cannot be, in one line."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import tiny_runs
import yaml

import ffprune_env as ff
from ffprune_env.cli.limit_flags import range_for
from ffprune_env.limits import smallest
from ffprune_env.lm.intervals import upper_bound
from ffprune_env.lm.loss import window_losses
from ffprune_env.texts.unseen_windows import load_unseen_windows
from ffprune_env.texts.windows import load_test_windows

#: What a tiny model of random weights loses at a sparsity of about 0.28.
LOSS = "0.07%"
RANGE = {"sparsity": "0.1:0.5", "evaluations": 0, "init": "ffn-only"}


@pytest.fixture(scope="module")
def limited(ppo_script, tiny_folder, text_file, tmp_path_factory):
    """A search over a range with a limit, and what it printed."""
    run = tmp_path_factory.mktemp("limited") / "run"
    flags = tiny_runs.settings(tiny_folder, text_file, run, **RANGE, **{"max-loss": LOSS})
    with ppo_script.console.capture() as said:
        assert tiny_runs.run_main(ppo_script, [*flags, "--no-baselines"]) == 0
    return run, said.get()


@pytest.fixture
def own(limited, tmp_path):
    """A copy of that run, without what met the limit and what was tried for it."""
    run = shutil.copytree(limited[0], tmp_path / "own", ignore=shutil.ignore_patterns(".lock", "tb", "limit.jsonl"))
    shutil.rmtree(found_in(run)[0])
    return run


def found_in(run):
    """The folder that met a limit, and what its best.json tells of that."""
    every = {file.parent: json.loads(file.read_text()) for file in run.glob("s*/best.json")}
    ((folder, best),) = ((folder, best) for folder, best in every.items() if "limit" in best)
    return folder, best


@pytest.fixture
def measuring(monkeypatch):
    """The models that were measured for a limit, the dense one first; Ctrl-C comes when there are so many."""
    real, models, most = smallest.window_losses, [], [math.inf]

    def losses(model, windows, batch_size=None):
        if len(models) >= most[0]:
            raise KeyboardInterrupt
        models.append(model.num_parameters())
        return real(model, windows, batch_size)

    monkeypatch.setattr(smallest, "window_losses", losses)
    return models, most


def unseen_by(run, text_file, model, tokenizer, n=32):
    """The windows that a limit is checked on, and which nothing else may have seen."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    evaluator = ff.load_evaluator(
        str(config["model"]), str(text_file), seq_len=64, search_windows=2, final_windows=2, calibration_windows=2,
        curve_windows=0, fresh_windows=False, heads="single", eval_every=0,
    )  # fmt: skip
    test = load_test_windows(str(text_file), None, tokenizer, 64, 2, model=model)
    return load_unseen_windows(model, tokenizer, str(text_file), {**evaluator.texts, "test": test}, n), evaluator


def test_the_model_on_disk_meets_the_limit_and_a_smaller_one_does_not(limited, text_file, tiny_folder):
    """Measured once more from the folder, by nothing that the search for it used."""
    folder, best = found_in(limited[0])
    limit = best["limit"]
    dense, tokenizer = ff.load_model(str(tiny_folder))
    windows, _ = unseen_by(limited[0], text_file, dense, tokenizer)
    assert limit["windows"] == len(windows) == 32
    dense_losses = window_losses(dense, windows)
    differences = (window_losses(ff.load_pruned(folder / "model"), windows) - dense_losses).double().numpy()
    assert math.expm1(differences.mean()) == pytest.approx(limit["loss"], abs=1e-5)
    assert math.expm1(upper_bound(differences)) == pytest.approx(limit["bound"], abs=1e-5)
    assert limit["max_loss"] == pytest.approx(0.0007)
    assert limit["loss"] < limit["bound"] <= limit["max_loss"]
    assert limit["margin"] == pytest.approx(limit["bound"] - limit["loss"])
    assert limit["asked"] == f"--max-loss {LOSS}"
    assert limit["dense_ppl"] == pytest.approx(dense_losses.double().mean().exp().item(), rel=1e-5)
    assert best["chosen"]["kept"] == ff.Policy.load(limited[0]).allocate(limit["sparsity"]).kept.tolist()
    made = sum(trial["calibration"] == "sequential" for trial in limit["tried"])
    calibrated_on = 2 * made  # windows through the dense model and the pruned one, for each
    assert best["cost"]["limit"]["forward_passes"] >= calibrated_on + len(limit["tried"]) * len(windows)
    assert limit["calibration"] == best["calibration"]["chosen"]["calibration"] == "sequential"
    for worse in ("missed", "smaller"):
        assert limit[worse]["bound"] > limit["max_loss"]
        assert limit[worse]["sparsity"] > limit["sparsity"]
    assert limit["smaller"]["params"] <= 0.98 * limit["params"]
    assert limit["missed"]["params"] <= limit["params"]


def test_what_is_said_and_kept(limited):
    run, said = limited
    folder, best = found_in(run)
    assert list(run.glob("s*/best.json")) == [folder / "best.json"]  # no other sparsity was asked for
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["max_loss"], config["sparsity"]) == (LOSS, {"low": 0.1, "high": 0.5})
    at = best["limit"]["sparsity"]
    assert folder.name == f"s{100 * at:g}"
    assert f"--max-loss {LOSS}: sparsity {at:g}," in said
    assert f"with 2% fewer parameters it would be missed: at {best['limit']['smaller']['sparsity']:g}" in said
    assert f"ffprune perplexity {folder / 'model'}" in said
    assert "of a range no model is written" not in said
    tried = [x["sparsity"] for x in best["limit"]["tried"] if x["written"]]
    assert len(tried) == len(set(tried)) <= 10


def test_a_run_that_has_ended_gives_the_same_model(own, limited, allocate):
    before = found_in(limited[0])
    code, said, _ = allocate(own, "--max-loss", LOSS)
    assert code == 0
    folder, best = found_in(own)
    assert folder.name == before[0].name
    for name in ("loss", "bound", "sparsity", "windows", "smaller", "tried"):
        assert best["limit"][name] == before[1]["limit"][name]
    assert (folder / "model" / "model.safetensors").read_bytes() == (
        before[0] / "model" / "model.safetensors"
    ).read_bytes()
    assert "the answer" in said


def test_an_interrupted_search_for_a_limit_goes_on_where_it_was(own, limited, allocate, measuring):
    before, (models, most) = found_in(limited[0])[1]["limit"], measuring
    most[0] = 4
    code, _, said = allocate(own, "--max-loss", LOSS)
    assert code == 130
    assert "interrupted; the models that were tried are kept, and the same command goes on" in said
    assert len((own / "limit.jsonl").read_text().splitlines()) == 3
    models.clear()
    most[0] = math.inf
    assert allocate(own, "--max-loss", LOSS)[0] == 0
    assert len(models) == 1 + len(before["tried"]) - 3
    assert found_in(own)[1]["limit"] == before
    models.clear()
    assert allocate(own, "--max-loss", LOSS, "--no-save-model")[0] == 0
    assert len(models) == 1


def test_what_was_tried_is_measured_again_on_other_windows_and_where_memory_ran_out(own, limited, allocate, measuring):
    models, _ = measuring
    lines = [json.loads(line) for line in (limited[0] / "limit.jsonl").read_text().splitlines()]
    written = [line for line in lines if line["written"]]
    assert {line["calibration"] for line in written} == {"sequential"}
    fell_back = [line | {"calibration": "ridge"} for line in lines]
    (own / "limit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in fell_back))
    assert allocate(own, "--max-loss", LOSS, "--no-save-model")[0] == 0
    assert len(models) == 1 + len(written)
    folder, best = found_in(own)
    assert best["limit"] == found_in(limited[0])[1]["limit"]
    shutil.rmtree(folder)
    models.clear()
    assert allocate(own, "--max-loss", LOSS, "--no-save-model", "--limit-windows", "16")[0] == 0
    assert len(models) == 1 + len(found_in(own)[1]["limit"]["tried"])


def test_a_run_that_is_interrupted_at_its_limit_goes_on(
    limited, ppo_script, tiny_folder, text_file, tmp_path, measuring, capsys
):
    run, (models, most) = tmp_path / "run", measuring
    flags = tiny_runs.settings(tiny_folder, text_file, run, **RANGE, **{"max-loss": LOSS})
    most[0] = 4
    assert tiny_runs.run_main(ppo_script, flags) == 130
    said = capsys.readouterr().err
    assert "what was measured is kept" in said
    assert f"--resume {run} goes on" in said
    most[0] = math.inf
    assert tiny_runs.run_main(ppo_script, ["--resume", run]) == 0
    whole, (folder, best) = found_in(limited[0])[1], found_in(run)
    assert best["limit"] == whole["limit"]
    compared = {"uniform", "ffn-only"}  # at the sparsity that was found, unless nobody wants them
    assert set(best["calibration"]) == set(best) & {*compared, "dense", "chosen"} == {*compared, "dense", "chosen"}
    assert best["calibration"]["uniform"]["sparsity"] >= best["limit"]["sparsity"]
    assert not compared & set(whole["calibration"])
    assert (folder / "plots" / "retention.png").is_file()
    tried_in_all = 2 + len(whole["limit"]["tried"])  # the dense model by both
    assert len(models) == tried_in_all
    assert best["cost"]["limit"]["forward_passes"] >= tried_in_all * 32


def test_a_perplexity_and_a_reward_are_the_same_limit(own, limited, allocate, tmp_path):
    found = found_in(limited[0])[1]["limit"]
    for flag, value in (("--max-ppl", found["dense_ppl"] * 1.0007), ("--min-reward", 1 / 1.0007)):
        out = tmp_path / flag[2:]
        assert allocate(own, flag, f"{value:.9f}", "--out", out, "--no-save-model")[0] == 0
        limit = json.loads((out / "best.json").read_text())["limit"]
        assert (limit["sparsity"], limit["bound"]) == (found["sparsity"], pytest.approx(found["bound"]))
        assert not (out / "model").exists()


def test_a_limit_that_the_highest_sparsity_meets_gives_that(own, allocate):
    code, said, _ = allocate(own, "--max-loss", "90%", "--no-save-model")
    assert code == 0
    folder, best = found_in(own)
    assert folder.name == "s50-limit"  # s50 is for what --sparsity asks for
    assert best["limit"]["missed"] is best["limit"]["smaller"] is None
    assert "0.5 is the highest sparsity that the policy knows" in said


def test_what_cannot_be_met_or_is_no_limit_gets_one_line(own, whole, allocate, tmp_path):
    for words, code, message in (
        (
            (own, "--max-loss", "0.001%"),
            1,
            "--max-loss 0.001% is met at no sparsity from 0.1 to 0.5, which",
        ),
        (
            (own, "--max-loss", "5"),
            2,
            "--max-loss takes a percentage above 0, such as 5%, or a fraction",
        ),
        ((own, "--max-ppl", "100"), 1, "--max-ppl 100: the dense model has 2"),
        ((own, "--max-ppl", "0.5"), 2, "--max-ppl takes a perplexity, which is above 1, got 0.5"),
        ((own, "--min-reward", "2"), 2, "--min-reward takes PPL_dense / PPL, between 0 and 1, got 2"),
        ((own, "--max-loss", "5%", "--max-ppl", "300"), 2, "one limit is enough, got --max-loss 5% and --max-ppl 300"),
        ((own, "--max-loss", "5%", "--sparsity", "0.2"), 2, "--max-loss 5% finds the sparsity itself: leave out"),
        ((own, "--max-loss", "5%", "--limit-windows", "3"), 2, "--limit-windows must be at least 4, got 3"),
        ((own,), 2, "which model? say its --sparsity, or what it may lose, with --max-loss"),
    ):
        found, _, err = allocate(*words)
        assert found == code, words
        (line,) = err.splitlines()
        assert message in line
    assert "the best that was seen, at 0.1, loses" in allocate(own, "--max-loss", "0.001%")[2]
    assert not list(own.glob("s*/best.json"))


def test_a_search_with_a_limit_takes_a_range_and_no_sparsity(ppo_script, tiny_folder, text_file, tmp_path, capsys):
    flags = tiny_runs.settings(tiny_folder, text_file, tmp_path / "run")
    for more, message in (
        (
            ["--max-loss", "5%", "--sparsity", "0.2"],
            "--max-loss 5% finds the sparsity itself: leave out",
        ),
        (["--max-loss", "five"], "--max-loss takes a percentage"),
        (
            ["--min-reward", "0.9", "--reward", "kl"],
            "--min-reward is about PPL_dense / PPL, and --reward kl",
        ),
        (["--max-loss", "5%", "--recover"], "--recover trains the model in model/"),
    ):
        assert tiny_runs.run_main(ppo_script, [*flags, *more]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_the_range_is_within_what_units_may_keep(ppo_script):
    args = ppo_script.Args(max_loss="5%", a_min=0.2)
    assert str(range_for(args.limit, args.sparsity, args.a_min, set())) == "0.02:0.5"
    assert str(range_for(args.limit, args.sparsity, 0.7, set())) == "0.02:0.27"
    assert range_for(None, 0.2, 0.2, set()) == 0.2


def test_losses_that_fall_again_are_followed(limited, text_file, tiny_folder, monkeypatch):
    """Where a model with 2 % fewer parameters meets the limit after all, smaller ones are looked for from there."""
    from ffprune_env.limits.limit import Limit

    dense, tokenizer = ff.load_model(str(tiny_folder))
    windows, evaluator = unseen_by(limited[0], text_file, dense, tokenizer, 8)
    policy = ff.Policy.load(limited[0])
    prunable, at = evaluator.prunable, []

    def losses(model, windows, batch_size=None):
        removed = 1 - model.num_parameters() / whole
        at.append(removed)
        hill = 0.08 < removed < 0.09
        return dense_losses + (0.2 if hill else max(0.0, removed - 0.15))

    whole = prunable.model.num_parameters()
    dense_losses = window_losses(prunable.model, windows)
    monkeypatch.setattr(smallest, "window_losses", losses)
    monkeypatch.setattr(smallest, "_FIRST_WIDTH", 0.2)
    found = smallest.smallest_model(policy, evaluator, Limit.max_loss("1%"), windows)
    removed = 1 - found.answer.params / whole
    assert 0.15 < removed <= 0.15 + math.log(1.01)
    assert found.missed.bound > found.most >= found.answer.bound
    assert np.isfinite(found.answer.loss)


def test_a_run_that_counts_something_else_is_asked_in_its_measure(ppo_script, save_tiny, text_file, allocate, tmp_path):
    """σ is a fraction of the cache there, in which FFNs cost nothing: they stay whole in what is found."""
    run = tmp_path / "run"
    flags = tiny_runs.settings(save_tiny("llama-gqa"), text_file, run, heads="groups", init="ffn-only", evaluations=0)
    words = ("--budget", "kv", "0.67x", "--no-save-model", "--no-baselines", "--calibration", "ridge")
    assert tiny_runs.run_main(ppo_script, [*flags, *words]) == 0
    assert allocate(run, "--max-loss", "50%")[0] == 0
    folder, best = found_in(run)
    policy = ff.Policy.load(run)
    assert best["limit"]["sparsity"] == pytest.approx(policy.knots[-1], abs=1e-4)
    assert best["chosen"]["kept"] == policy.allocate(best["limit"]["sparsity"]).kept.tolist()
    assert best["chosen"]["kept"][1::2] == [unit.n_groups for unit in policy.units[1::2]]
    assert (folder / "model" / "model.safetensors").is_file()
