"""The scripts of evaluate/ on tiny models: what they print, and what bad input gets."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import byte_tokenizer, load_script, tiny_model
from plain import plainly

import ffprune_env as ff
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.run.config import evaluator_settings, read_config
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.frontier import frontier
from ffprune_env.texts.overlap import unseen
from ffprune_env.texts.window_plan import load_planned_windows

#: What ends a study early, and its exit code then.
ENDS = [
    pytest.param(KeyboardInterrupt(), 130, id="Ctrl-C"),
    pytest.param(torch.OutOfMemoryError("no memory"), 1, id="no memory"),
    pytest.param(OSError(28, "No space left on device"), 1, id="full disk"),
]


def failing(function, n, error):
    """A function that does ``n`` times what it did, and raises an error then."""
    calls = itertools.count()

    def call(*arguments, **settings):
        if next(calls) >= n:
            raise error
        return function(*arguments, **settings)

    return call


@pytest.fixture(scope="module")
def runs(tiny_folder, text_file, tmp_path_factory):
    """Two searches of one model that differ in sparsity and seed, one of several sparsities, and a start as it is."""
    root, ppo = tmp_path_factory.mktemp("runs"), load_script("train/ppo.py")
    flags = {
        "--model": tiny_folder, "--text": text_file, "--seq-len": 64, "--search-windows": 2, "--calibration-windows": 2,
        "--test-seq-len": 64, "--test-windows": 2, "--rollout": 4, "--dtype": "float32", "--alpha-start": 1,
        "--heads": "single",
    }  # fmt: skip
    asked = (("one", (0.2,), 0, 4), ("two", (0.3,), 1, 4), ("several", (0.2, 0.3), 0, 4), ("start", (0.2,), 0, 0))
    for name, sparsities, seed, evaluations in asked:
        changes = {**flags, "--run": root / name, "--seed": seed, "--evaluations": evaluations}
        words = [word for pair in changes.items() for word in pair] + ["--sparsity", *sparsities]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train/ppo.py", *map(str, words)])
            assert ppo.main() == 0
    return root


@pytest.fixture(scope="module")
def other_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text("\n".join(f"number {i} is not {i + 1}" for i in range(200)))
    return path


def run_script(path, monkeypatch, capsys, *arguments):
    """Exit code, output and errors of a script's main."""
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "300")
    code = load_script(path).main()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def first_column(table: str) -> str:
    """The names in a table, of which long ones are folded over several lines."""
    return "".join(without_folds(line.split("│")[1]) for line in table.splitlines() if line.startswith("│"))


def without_folds(name: str) -> str:
    return "".join(name.split())


def test_runs_are_compared_on_the_same_windows(runs, other_text, monkeypatch, capsys, tmp_path):
    arguments = (runs / "one", runs / "two", "--test-text", other_text, "--test-seq-len", 64, "--test-windows", 3)
    code, out, _ = run_script(
        "evaluate/compare_runs.py", monkeypatch, capsys, *arguments, "--json", tmp_path / "x.json"
    )
    assert code == 0
    names = ("dense", "uniform σ 0.2", "ffn-only σ 0.2", str(runs / "one"), "uniform σ 0.3", str(runs / "two"))
    assert all(without_folds(name) in first_column(out) for name in names)
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert len(results) == 2 * (len(names) + 1) - 1
    for name in ("one", "two"):
        best = json.loads((runs / name / "best.json").read_text())
        for result in (x for x in results if x["policy"] == str(runs / name)):
            wanted = (best["calibration"] if result["calibrated"] else best)["chosen"]
            assert result["kept"] == wanted["kept"]
            assert result["search_ppl"] == pytest.approx(wanted["search_ppl"], rel=1e-5)
            model = ff.load_pruned(runs / name / "model")
            windows = ff.load_windows(str(other_text), byte_tokenizer(), "all", 64, 3)
            if result["calibrated"]:
                assert result["test_ppl"] == pytest.approx(ff.perplexity(model, windows), rel=1e-5)


def test_of_a_run_of_several_sparsities_all_are_compared(runs, other_text, monkeypatch, capsys, tmp_path):
    several = runs / "several"
    arguments = (several, runs / "one", "--test-text", other_text, "--test-seq-len", 64, "--test-windows", 1)
    code, out, _ = run_script(
        "evaluate/compare_runs.py", monkeypatch, capsys, *arguments, "--json", tmp_path / "x.json"
    )
    assert code == 0
    results = {(x["policy"], x["calibrated"]): x for x in json.loads((tmp_path / "x.json").read_text())["results"]}
    for folder, sparsity in ((several / "s20", 0.2), (several / "s30", 0.3), (runs / "one", 0.2)):
        assert without_folds(str(folder)) in first_column(out)
        found = results[str(folder), True]
        assert found["kept"] == json.loads((folder / "best.json").read_text())["chosen"]["kept"]
        assert found["sparsity"] >= sparsity
        assert without_folds(f"ffn-only σ {sparsity}") in first_column(out)


def test_a_start_as_it_is_is_compared_with_a_search(runs, other_text, monkeypatch, capsys, tmp_path):
    """Of the same settings they look at other windows of search text; each must have its own, whichever is first."""
    test = ("--test-text", other_text, "--test-seq-len", 64, "--test-windows", 2, "--json", tmp_path / "x.json")
    windows = ff.load_windows(str(other_text), byte_tokenizer(), "all", 64, 2)
    for pair in (("one", "start"), ("start", "one")):
        code, _, err = run_script("evaluate/compare_runs.py", monkeypatch, capsys, *(runs / x for x in pair), *test)
        assert (code, err) == (0, "")
        results = {(x["policy"], x["calibrated"]): x for x in json.loads((tmp_path / "x.json").read_text())["results"]}
        for name in pair:
            found = results[str(runs / name), True]
            assert found["kept"] == json.loads((runs / name / "best.json").read_text())["chosen"]["kept"]
            model = ff.load_pruned(runs / name / "model")
            assert found["test_ppl"] == pytest.approx(ff.perplexity(model, windows), rel=1e-5)
    for use in ("search", "calibration"):
        changed = other_run(runs / "start", tmp_path / use, **{f"{use} text": "other"})
        code, _, err = run_script("evaluate/compare_runs.py", monkeypatch, capsys, runs / "one", changed, *test)
        assert code == 2
        assert re.search(f"the {use} text .*words.txt has changed since {changed} was begun: search it again", err), err


def test_test_text_is_text_that_no_run_looked_at(runs, monkeypatch, capsys, tmp_path):
    """A search draws from windows that a start as it is does not look at: they are no test text of both."""
    texts = {}
    for name in ("start", "one"):
        config = read_config(runs / name / "config.yaml")
        loaded = ff.load_model(str(config["model"]), "float32", "cpu")
        texts[name] = load_planned_windows(*loaded, config["text"], evaluator_settings(config, runs / name)).texts
    drawn = texts["one"]["pool"][unseen(texts["one"]["pool"], *texts["start"].values())]
    test = tmp_path / "drawn.txt"
    test.write_text(byte_tokenizer().decode(drawn.flatten().tolist()))
    assert ff.load_windows(str(test), byte_tokenizer(), "all", 64).tolist() == drawn.tolist()
    flags = (runs / "start", runs / "one", "--test-text", test, "--test-seq-len", 64)
    code, _, err = run_script("evaluate/compare_runs.py", monkeypatch, capsys, *flags)
    assert (code, "100% of the test text is also search or calibration text" in err) == (2, True)


def test_a_run_that_has_not_ended_is_refused_before_a_model_is_loaded(runs, other_text, monkeypatch, capsys, tmp_path):
    def load(*_):
        raise AssertionError("a model is loaded for a run that has chosen nothing")

    monkeypatch.setattr(load_script("evaluate/compare_runs.py"), "load_model", load)
    absent, empty, part = (other_run(runs / x, tmp_path / str(i)) for i, x in enumerate(("one", "one", "several")))
    (absent / "best.json").unlink()
    (empty / "best.json").write_text("{}")
    (part / "s30" / "best.json").unlink()
    for run, folder, lacks in (
        (absent, absent, "there is no {}"),
        (empty, empty, "{} does not say what it chose"),
        (part, part / "s30", "there is no {}"),
    ):
        arguments = (runs / "two", run, "--test-text", other_text)
        code, _, err = run_script("evaluate/compare_runs.py", monkeypatch, capsys, *arguments)
        assert code == 2
        (line,) = err.splitlines()
        what = lacks.format(folder / "best.json")
        assert line == f"error: {run} has not ended: {what}; go on with it by --resume {run}"


def test_what_cannot_be_compared_gets_one_line(runs, text_file, other_text, monkeypatch, capsys, tmp_path):
    config = yaml.safe_load((runs / "one" / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "seq_len": 32}))
    budget = tmp_path / "budget"
    budget.mkdir()
    (budget / "config.yaml").write_text(yaml.safe_dump({**config, "budget": "parameters 20%"}))
    limit = tmp_path / "limit"
    limit.mkdir()
    (limit / "config.yaml").write_text(yaml.safe_dump({**config, "max_loss": "5%"}))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text(yaml.safe_dump({**config, "sparsity": "some"}))
    earlier = tmp_path / "earlier"  # of a version that did not calibrate in sequence
    earlier.mkdir()
    del config["calibration"], config["reward_model"]
    config["calibrated"] = True
    (earlier / "config.yaml").write_text(yaml.safe_dump(config))
    for arguments, message in (
        ((runs / "one", tmp_path, "--test-text", other_text), "has seq_len 32,"),
        ((runs / "one", earlier, "--test-text", other_text), "has calibration 'ridge', the first run has 'sequential'"),
        ((damaged, "--test-text", other_text), "its sparsity is 'some', not one number or several"),
        ((budget, "--test-text", other_text), "was asked for --budget parameters 20%, and runs are compared by"),
        ((limit, "--test-text", other_text), "was asked for --max-loss 5%, and runs are compared by sparsity"),
        ((runs / "one", "--test-text", text_file), "is what the runs were searched on"),
        ((runs / "absent", "--test-text", other_text), "absent is not a run, there is no such folder"),
        ((runs / "one", "--test-text", "absent.txt"), "no such file"),
    ):
        code, _, err = run_script("evaluate/compare_runs.py", monkeypatch, capsys, *arguments)
        assert code == 2
        (line,) = err.splitlines()
        assert message in line


def other_run(run, to, **changes):
    """A copy of a run that says that it measured something else."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("model", "tb", "plots"))
    identity = json.loads((to / "identity.json").read_text())
    (to / "identity.json").write_text(json.dumps(identity | changes))
    return to


@pytest.mark.parametrize("script", ["compare_runs", "reward_study"])
def test_runs_of_another_model_or_text_than_there_is_now_are_refused(
    script, runs, other_text, monkeypatch, capsys, tmp_path
):
    test = ("--test-text", other_text, "--test-seq-len", 64, "--test-windows", 1)
    for i, (changes, says) in enumerate(
        (
            ({"weights": "others"}, "the weights of .* have changed since .* was begun: search it again"),
            ({"search text": "other"}, "the search text .*words.txt has changed since .* was begun: search it again"),
            ({"calibration text": "other"}, "the calibration text .*words.txt has changed since"),
            (None, "holds no identity.json"),
        )
    ):
        run = other_run(runs / "one", tmp_path / str(i), **(changes or {}))
        if changes is None:
            (run / "identity.json").unlink()
        code, _, err = run_script(f"evaluate/{script}.py", monkeypatch, capsys, run, *test)
        assert code == 2
        (line,) = err.splitlines()
        assert re.search(says, line), line


@pytest.mark.parametrize("script", ["compare_runs", "reward_study"])
def test_runs_are_measured_in_the_order_that_they_have(
    script, runs, other_text, monkeypatch, capsys, tmp_path, request, caplog
):
    test = ("--test-text", other_text, "--test-seq-len", 64, "--test-windows", 1, "--json", tmp_path / "x.json")
    test += ("--rewarded-on", 1) if script == "reward_study" else ()

    def measured(*runs):
        code, _, err = run_script(f"evaluate/{script}.py", monkeypatch, capsys, *runs, *test)
        return (code, err) if code else json.loads((tmp_path / "x.json").read_text())

    before = measured(runs / "one")
    request.getfixturevalue("other_scores")
    assert measured(runs / "one") == before
    other = other_run(runs / "one", tmp_path / "other")
    order = json.loads((other / "order.json").read_text())
    turned = {unit: " ".join(reversed(members.split())) for unit, members in order.items()}
    (other / "order.json").write_text(json.dumps(turned))
    assert measured(other) != before
    if script == "compare_runs":
        code, err = measured(runs / "one", other)
        (line,) = err.splitlines()
        assert code == 2
        assert re.search("other has heads and channels in another order than .*one, as another number of", line)
    (other / "order.json").unlink()
    measured(other)
    assert "other does not say in which order it had heads and channels: they are ranked again" in caplog.text


def test_runs_of_other_versions_are_measured_by_those_of_now_and_it_is_said(
    runs, other_text, monkeypatch, capsys, tmp_path, caplog
):
    test = ("--test-text", other_text, "--test-seq-len", 64, "--test-windows", 1)
    run = other_run(runs / "one", tmp_path / "earlier", transformers="5.0.0")
    assert run_script("evaluate/compare_runs.py", monkeypatch, capsys, run, *test)[0] == 0
    (said,) = (message for message in caplog.messages if "transformers has changed from 5.0.0" in message)
    assert said.endswith("what it chose is measured by those of now")


def test_policies_that_were_not_calibrated_as_asked_are_marked(runs, other_text, monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(SequentialCalibration, "_fit", fail)
    test = ("--test-text", other_text, "--test-seq-len", 64, "--test-windows", 1, "--json", tmp_path / "x.json")
    code, out, _ = run_script("evaluate/compare_runs.py", monkeypatch, capsys, runs / "one", *test)
    assert code == 0
    assert "uniform σ 0.2 ‡" in out
    assert "‡ calibrated by Eqs. 6-7 alone, not in sequence as asked for" in out
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert {x["calibration"] for x in results if x["calibrated"]} == {"ridge"}


def test_dense_and_pruned_are_timed_where_they_are_served(runs, tiny_folder, monkeypatch, capsys, tmp_path):
    settings = {"--dense": tiny_folder, "--prompt": 32, "--new-tokens": 4, "--rounds": 2, "--device": "cpu"}
    words = [str(word) for pair in settings.items() for word in pair]
    own = (runs / "one" / "model", *words)
    more = ("--backend", "transformers", "vllm", "--vllm-python", tmp_path / "python", "--json", tmp_path / "x.json")
    code, out, err = run_script("evaluate/bench_serving.py", monkeypatch, capsys, *own, *more, "--batch", 2)
    assert code == 0
    for word in ("prefill of 2 × 32", "decode of 2 × 4", "transformers float32", "memory of weights", "quartiles"):
        assert word in out
    assert "python has no vLLM with ffprune-vllm: make vllm" in err
    found = json.loads((tmp_path / "x.json").read_text())
    dense, pruned = (ff.load_model(str(x))[0] for x in (tiny_folder, runs / "one" / "model"))
    assert found["ideal"] == dense.num_parameters() / pruned.num_parameters() > 1
    (served,) = found["served"]
    assert served["weights"] == pytest.approx(1 / found["ideal"])
    keys = pruned.config.num_key_value_heads_per_layer  # those that a query head reads stay
    assert served["cache"] == pytest.approx(sum(keys) / (len(keys) * dense.config.num_key_value_heads))
    assert [(x["what"], x["batch"]) for x in served["speeds"]] == [("prefill", 2), ("decode", 2)]
    assert all(x["low"] <= x["ratio"] <= x["high"] for x in served["speeds"])
    tiny_model("opt").save_pretrained(runs / "other")
    byte_tokenizer().save_pretrained(runs / "other")
    for arguments, message in (
        ((tiny_folder,), "its model_type is 'llama'"),
        ((*own, "--dense", runs / "other"), "was made from another model, name it with --dense"),
        ((*own, "--rounds", 0), "--rounds must be at least 1"),
        ((*own, "--threads", 0), "--threads must be at least 1"),
        ((*own, "--prompt", 128), "takes 128: give at most --prompt 127 and --new-tokens 111"),
        ((*own, "--new-tokens", 112), "need a sequence of 129 tokens, and the model takes 128"),
    ):
        code, _, err = run_script("evaluate/bench_serving.py", monkeypatch, capsys, *arguments)
        assert code == 2
        assert message in err


def test_bench_times_a_step_and_what_it_is_made_of(tiny_folder, text_file, monkeypatch, capsys, tmp_path):
    arguments = ("--model", tiny_folder, "--text", text_file, "--seq-len", 64, "--search-windows", 2, "--rounds", 2)
    code, out, _ = run_script("evaluate/bench.py", monkeypatch, capsys, *arguments, "--json", tmp_path / "x.json")
    assert code == 0
    for word in ("σ = 0.5", "of the roofline", "linear layers alone", "usual way / env.step", "peak memory"):
        assert word in out
    seconds = json.loads((tmp_path / "x.json").read_text())["seconds"]
    assert set(seconds) == {"0.0", "0.2", "0.5"}
    for runs in seconds.values():
        assert set(runs) == {"step", "calibrated", "usual", "forward", "products", "linear"}
        assert all(len(values) == 2 for values in runs.values())


@pytest.mark.parametrize("family", ["opt", "llama-gqa", "mistral"])
def test_the_usual_way_of_the_bench_measures_the_same_model(family, windows):
    bench = load_script("evaluate/bench.py")
    prunable = PrunableModel(tiny_model(family))
    prunable.rank(wanda_scores(prunable, collect_statistics(prunable, windows)))
    evaluator, kept = LMEvaluator(prunable, windows), [2, 9, 4, 24, 1, 3]
    stock, masked = tiny_model(family), tiny_model(family)
    bench.usual(stock, masked, evaluator, [4, 24, 4, 24, 4, 24], 2)
    bench.usual(stock, masked, evaluator, kept, 2)
    assert bench.masked_perplexity(masked, windows, 2) == pytest.approx(evaluator.measure(np.array(kept), 3), rel=1e-5)


@pytest.mark.parametrize(("error", "exit_code"), ENDS)
def test_runs_that_were_measured_are_printed_whatever_comes_then(
    error, exit_code, runs, other_text, monkeypatch, capsys
):
    script = load_script("evaluate/compare_runs.py")
    measured = script.measure_policy

    def stop_at_dense(evaluator, kept, *arguments, **settings):
        if not settings["calibrated"]:
            raise error
        return measured(evaluator, kept, *arguments, **settings)

    monkeypatch.setattr(script, "measure_policy", stop_at_dense)
    arguments = (runs / "one", "--test-text", other_text, "--test-seq-len", 64, "--test-windows", 1)
    code, out, err = run_script("evaluate/compare_runs.py", monkeypatch, capsys, *arguments)
    assert code == exit_code
    assert len(err.splitlines()) == 1
    (uniform,) = (line for line in out.splitlines() if "uniform σ 0.2" in line)
    assert len(re.findall(r"\d+\.\d\d ", uniform)) == 2  # search and test PPL, calibrated


def test_a_pruned_model_is_smaller_than_what_it_was_made_from(tmp_path):
    prunable = PrunableModel(tiny_model("llama").float())
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    sizes = []
    for share in (1, 2):
        ff.save_pruned(prunable, [unit.n_groups // share for unit in prunable.units], tmp_path / str(share))
        sizes.append((tmp_path / str(share) / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]


def test_rewards_are_studied_on_the_policies_of_a_run(runs, other_text, monkeypatch, capsys, tmp_path):
    arguments = (
        runs / "one",
        "--test-text",
        other_text,
        "--test-seq-len",
        64,
        "--test-windows",
        2,
        "--rewarded-on",
        1,
        3,
    )
    code, out, _ = run_script(
        "evaluate/reward_study.py", monkeypatch, capsys, *arguments, "--policies", 4, "--json", tmp_path / "x.json"
    )
    assert code == 0
    assert "6 policies" in out  # uniform and ffn-only, too
    measured = json.loads((tmp_path / "x.json").read_text())
    assert len(measured.pop("losses")) == 4 * 3
    assert all(len(values) == 6 for values in measured.values())
    assert "samples differ by" in " ".join(out.split())
    evaluator = ff.load_evaluator(
        str(yaml.safe_load((runs / "one" / "config.yaml").read_text())["model"]),
        yaml.safe_load((runs / "one" / "config.yaml").read_text())["text"],
        dtype="float32",
        **plainly(
            seq_len=64,
            calibration_windows=2,
            criterion="surgeon",
            search_windows=3,
            fresh_windows=False,
            calibration="ridge",
            reward_model="calibrated",
            batch_size=None,
        ),
    )
    ppl, kl = evaluator.compare(ff.uniform(0.2, evaluator.units).kept, 3)
    assert measured["ppl 3"][4] == pytest.approx(ppl / evaluator.dense(3), rel=1e-5)
    assert measured["kl 3"][4] == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize(("error", "exit_code"), ENDS)
def test_rewards_are_told_of_what_was_measured_whatever_comes_then(
    error, exit_code, runs, other_text, monkeypatch, capsys, tmp_path
):
    script = load_script("evaluate/reward_study.py")
    test = ("--test-text", other_text, "--test-seq-len", 64, "--test-windows", 1, "--rewarded-on", 1, 2)
    for n, says in ((4, "4 policies"), (2, "2 policies were measured, 3 are needed to tell")):
        with monkeypatch.context() as patch:
            patch.setattr(script, "perplexity", failing(script.perplexity, n, error))
            flags = (runs / "one", *test, "--json", tmp_path / "x.json")
            code, out, err = run_script("evaluate/reward_study.py", patch, capsys, *flags)
        assert (code, len(err.splitlines())) == (exit_code, 1)
        assert says in out
        measured = json.loads((tmp_path / "x.json").read_text())
        assert len(measured.pop("losses")) == 2 * n
        assert {len(values) for values in measured.values()} == {n}


def test_rewards_are_not_studied_on_a_run_that_has_hardly_any_samples(runs, monkeypatch, capsys, tmp_path):
    few = other_run(runs / "one", tmp_path / "few")
    lines = (few / "samples.jsonl").read_text().splitlines(keepends=True)
    (few / "samples.jsonl").write_text("".join(lines[:2]))
    assert not (runs / "start" / "samples.jsonl").exists()
    for run, n in ((runs / "start", 0), (few, 2)):
        code, _, err = run_script("evaluate/reward_study.py", monkeypatch, capsys, run)
        assert code == 2
        says = f"{run} holds {n} samples at nearly its sparsity, 3 are needed: search with --evaluations 96"
        assert err == f"error: {says}\n"


def test_rewards_are_studied_on_a_run_that_was_cut_off(runs, tmp_path, caplog):
    """What a run leaves that was killed, or that is at work, is read as --resume reads it, and left as it is."""
    script, cut = load_script("evaluate/reward_study.py"), RunFolder(other_run(runs / "one", tmp_path / "cut"))
    whole = cut.samples.read_bytes()
    cut.samples.write_bytes(torn := whole + whole[:40])
    found = script.nearly_as_sparse(cut, 0.2)
    assert [kept.tolist() for kept in found] == [json.loads(line)["kept"] for line in whole.splitlines()]
    assert cut.samples.read_bytes() == torn
    assert f"the last line of {cut.samples} is broken" in caplog.messages[-1]
    cut.samples.write_bytes(b"{\n" + whole)
    with pytest.raises(ValueError, match=f"^line 1 of {cut.samples} is not sample 0 of a search"):
        script.nearly_as_sparse(cut, 0.2)


@pytest.mark.parametrize(("name", "value"), [("budget", "parameters 20%"), ("max_loss", "5%")])
def test_runs_that_were_not_asked_for_a_sparsity_have_none(runs, name, value, monkeypatch, capsys, tmp_path):
    """Of a budget the config keeps the default of --sparsity, at which nothing was searched."""
    run = other_run(runs / "one", tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, name: value}))
    says = f"{run} was asked for --{name.replace('_', '-')} {value}, and runs are compared by sparsity"
    code, _, err = run_script("evaluate/reward_study.py", monkeypatch, capsys, run)
    assert (code, err) == (2, f"error: {says}\n")
    with pytest.raises(ValueError, match=re.escape(says)):
        frontier(runs / "two", [run])


def test_noise_is_what_one_window_says_and_others_do_not():
    """Known deviations come out, however hard the windows are."""
    study, rng = load_script("evaluate/reward_study.py"), np.random.default_rng(0)
    truth, windows = rng.normal(3, 0.12, (400, 1)), rng.normal(0, 2, (1, 16))
    signal, noise = study.signal_and_noise(truth + windows + rng.normal(0, 0.3, (400, 16)))
    assert signal == pytest.approx(0.12, rel=0.1)
    assert noise == pytest.approx(0.3, rel=0.05)
    assert study.signal_and_noise(np.tile(windows, (400, 1)))[0] == 0


@pytest.mark.parametrize("script", ["search_study", "reward_study"])
def test_a_table_is_printed_though_its_file_cannot_be_written(script, runs, other_text, monkeypatch, capsys, tmp_path):
    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load_script(f"evaluate/{script}.py").Args, "write_json", write)
    flags = ("--methods", "random", "--budgets", 64, "--layers", 4, "--seeds", 1)
    if script == "reward_study":
        flags = (runs / "one", "--test-text", other_text, "--test-seq-len", 64, "--test-windows", 1, "--rewarded-on", 1)
    code, out, err = run_script(f"evaluate/{script}.py", monkeypatch, capsys, *flags)
    assert (code, err) == (1, "error: [Errno 28] No space left on device\n")
    assert "│" in out


def test_scale_knows_how_large_models_are(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run_script("evaluate/scale.py", monkeypatch, capsys, "--gpu-memory", 80)
    assert code == 0
    (largest,) = (line.split() for line in out.splitlines() if "llama-2-70b" in line)
    assert [largest[i] for i in (9, 11)] == ["2", "64.2"]  # GPUs, and GiB of weights on each of them
    for flag in ("--tflops", "--gpu-memory", "--tokens"):
        assert run_script("evaluate/scale.py", monkeypatch, capsys, flag, 0)[0] == 2
