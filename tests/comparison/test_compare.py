"""Methods against each other: every cell is measured alike, kept, and read back."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import load_script, tiny_model
from safetensors.torch import load_file, save_file

import ffprune_env as ff
from ffprune_env.comparison.cells import Cell, ComparisonFolder, cell_name
from ffprune_env.comparison.contest import REBUILDERS, Subject, ask_final, rebuild_and_measure, search_and_measure
from ffprune_env.comparison.plan import ANSWERING, named_methods
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.zero_shot import TaskResult, ZeroShot
from ffprune_env.evaluators.zero_shot_tasks import TASKS
from ffprune_env.lm.loss import perplexity
from ffprune_env.methods.ablations import ABLATIONS
from ffprune_env.methods.ppo import ppo
from ffprune_env.methods.registry import METHODS, Method, settings_of
from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores, wifv_scores
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.search.problem import Meter, Problem
from ffprune_env.search.settings import SearchSettings


def subject_of(model, windows: torch.Tensor) -> Subject:
    """A calibrated model; test text is what it is calibrated on, which no test here minds."""
    prunable = PrunableModel(model)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    texts = {"finalists": windows.flip(1), "curves": windows, "calibration": windows}
    evaluator = LMEvaluator(prunable, windows, 1, ff.RidgeCalibration(prunable, stats), True, stats, texts=texts)
    plain = LMEvaluator(prunable, windows, 1, evaluator.calibration, False, stats, texts=texts)
    return Subject(evaluator, plain, windows, windows)


def pruned_by_hand(model, windows, sparsity: float):
    """Uniform pruning in the plainest way: count groups, take the best by Wanda, write zeros for the rest."""
    config = model.config
    layers = model.model.decoder.layers if config.model_type == "opt" else model.model.layers
    heads = config.num_attention_heads
    parts = []  # (output projection, groups, parameters of a group)
    for layer in layers:
        attention = layer.self_attn
        shared = attention.k_proj.weight.shape[0] != attention.q_proj.weight.shape[0]
        inputs = [attention.q_proj] if shared else [attention.q_proj, attention.k_proj, attention.v_proj]
        output = attention.out_proj if hasattr(attention, "out_proj") else attention.o_proj
        parts.append((inputs, output, heads))
        ffn = [layer.fc1] if hasattr(layer, "fc1") else [layer.mlp.gate_proj, layer.mlp.up_proj]
        down = layer.fc2 if hasattr(layer, "fc2") else layer.mlp.down_proj
        parts.append((ffn, down, down.in_features))
    counted = []
    for inputs, output, groups in parts:
        n = output.weight.numel() + sum(x.weight.numel() + (0 if x.bias is None else len(x.bias)) for x in inputs)
        counted.append(n // groups)
    total = sum(price * groups for price, (_, _, groups) in zip(counted, parts, strict=True))
    left = math.floor(total * (1 - sparsity) + 1e-6)
    kept = [
        round((1 - sparsity) * heads) if groups == heads and i % 2 == 0 else 0 for i, (_, _, groups) in enumerate(parts)
    ]
    left -= sum(k * price for k, price in zip(kept, counted, strict=True))
    channels = left // counted[1]
    ffns = range(1, len(parts), 2)
    for place, i in enumerate(ffns):
        kept[i] = channels // len(ffns) + (place < channels % len(ffns))
    norms = [0.0] * len(parts)
    hooks = []
    for i, (_, output, _) in enumerate(parts):

        def add(module, args, i=i):
            norms[i] = norms[i] + args[0].flatten(0, -2).square().sum(0)

        hooks.append(output.register_forward_pre_hook(add))
    with torch.no_grad():
        model(windows)
        for hook in hooks:
            hook.remove()
        for k, norm, (_, output, groups) in zip(kept, norms, parts, strict=True):
            scores = (norm.sqrt() * output.weight.abs().sum(0)).view(groups, -1).sum(1)
            gone = scores.argsort(descending=True)[k:]
            output.weight.view(output.out_features, groups, -1)[:, gone] = 0
    return model


def test_uniform_equals_uniform_by_hand(family, windows):
    test = torch.cat([windows, windows.flip(1)])
    subject = replace(subject_of(tiny_model(family), windows), test_windows=test)
    cell = search_and_measure(subject, "uniform", METHODS["uniform"], 0.3, None, 0)
    by_hand = perplexity(pruned_by_hand(tiny_model(family), windows, 0.3), test)
    assert cell.test_ppl == pytest.approx(by_hand, rel=1e-6)  # losses are float32
    assert cell.evaluations == cell.tokens == 0
    assert cell.trace == []
    low, high = cell.test_interval
    assert low <= cell.test_ppl <= high


@pytest.mark.slow
def test_uniform_equals_uniform_by_hand_on_the_default_model():
    model, tokenizer = ff.load_model("smollm2-135m", dtype="float32", device="cpu")
    windows = ff.load_windows("python-docs", tokenizer, split="calibration", seq_len=256, n_windows=4)
    cell = search_and_measure(subject_of(model, windows), "uniform", METHODS["uniform"], 0.2, None, 0)
    dense, _ = ff.load_model("smollm2-135m", dtype="float32", device="cpu")
    by_hand = perplexity(pruned_by_hand(dense, windows, 0.2), windows)
    print(f"uniform at σ = 0.2: {cell.test_ppl:.6f}, by hand {by_hand:.6f}")
    assert cell.test_ppl == pytest.approx(by_hand, rel=1e-5)


def test_a_search_pays_for_its_tokens_alone(windows):
    subject = subject_of(tiny_model("llama-gqa"), windows)
    cell = search_and_measure(subject, "evolution", METHODS["evolution"], 0.3, 1, 20)
    assert cell.evaluations == 20
    assert cell.tokens == 20 * windows.numel()
    assert 0 < cell.tokens_seen < cell.tokens  # of children that are like others nothing is read again
    tokens = [at for at, _ in cell.trace]
    assert tokens == sorted(tokens)
    assert tokens[-1] == cell.tokens
    subject.evaluator.forget()
    assert cell.trace[-1][1] == cell.search_ppl == subject.evaluator.measure(np.array(cell.kept), 3)
    assert cell.calibrated_test_ppl != cell.test_ppl


def test_a_backward_pass_sees_tokens_once_and_is_charged_three_times(windows):
    cell = search_and_measure(subject_of(tiny_model("llama-gqa"), windows), "fisher", METHODS["fisher"], 0.3, None, 20)
    assert (cell.tokens_seen, cell.tokens) == (windows.numel(), 3 * windows.numel())
    assert cell.evaluations == 3


@pytest.mark.parametrize("model_type", ["opt", "llama-gqa", "llama"])
def test_flap_bias_is_flap_as_its_authors_have_it(model_type, windows):
    """Its allocation with its own ranking and its own compensation; the others' ranking is as it was after it."""
    subject = subject_of(tiny_model(model_type), windows)
    ridge, bias = (search_and_measure(subject, x, METHODS[x], 0.3, None, 0) for x in ("flap", "flap-bias"))
    assert ridge.kept == bias.kept
    assert ridge == replace(search_and_measure(subject, "flap", METHODS["flap"], 0.3, None, 0), seconds=ridge.seconds)
    alone = PrunableModel(tiny_model(model_type))
    stats = collect_statistics(alone, windows)
    alone.rank(wifv_scores(alone, stats))
    with alone.pruned(bias.kept) as model:
        assert bias.test_ppl == pytest.approx(perplexity(model, windows), rel=1e-6)
    with alone.pruned(bias.kept, FlapBias(alone, stats)) as model:
        assert bias.params == sum(parameter.numel() for parameter in model.parameters())  # biases that it adds count
        assert bias.total_sparsity == (alone.n_params - bias.params) / alone.n_params
        assert bias.calibrated_test_ppl == pytest.approx(perplexity(model, windows), rel=1e-6)
        compensated = perplexity(model, windows)

    def ask(model):
        return ZeroShot({"ppl": TaskResult(perplexity(model, windows), None, None, None, 1, "acc")})

    asking = replace(subject, zero_shot=ask)
    asked = ask_final(asking, bias, METHODS["flap-bias"])
    assert asked.zero_shot["ppl"] == pytest.approx(compensated, rel=1e-6)


@pytest.mark.parametrize("name", REBUILDERS)
def test_methods_that_rebuild_remove_what_pruning_removes(name, windows):
    subject = subject_of(tiny_model("llama-gqa"), windows)
    prunable = subject.evaluator.prunable
    dense = perplexity(prunable.model, windows)
    cell, model = rebuild_and_measure(subject, name, 0.3)
    assert cell.test_ppl == perplexity(model, windows)
    assert cell.params == sum(parameter.numel() for parameter in model.parameters())
    removed = 0.3 * sum(unit.n_params for unit in prunable.units)
    assert removed - 1 <= prunable.n_params - cell.params
    assert cell.total_sparsity == 1 - cell.params / prunable.n_params
    assert cell.kept is None
    assert perplexity(prunable.model, windows) == dense


CELL = Cell(
    "evolution", 0.25, 1, [3, 4], 0.251, 0.1, 900, 20.0, math.inf, (math.inf, math.inf), 30.0, (29.0, 31.0), 8.0, 1024,
    1.5, [(512, math.inf), (1024, 20.0)], {"boolq": 0.5, "average": 0.5},
)  # fmt: skip


def test_cells_come_back_as_they_were(tmp_path):
    folder = ComparisonFolder(tmp_path / "x", {"model": "m", "seeds": (1, 2), "ridge": 0.01})
    heuristic = replace(CELL, method="svd-llm", seed=None, kept=None, sparsity=None, calibrated_test_ppl=None,
                        calibrated_test_interval=None, test_interval=None, trace=[], zero_shot=None)  # fmt: skip
    for cell in (CELL, heuristic):
        assert folder.cell(cell.method, cell.target_sparsity, cell.seed) is None
        folder.add(cell)
        assert ComparisonFolder(tmp_path / "x", {"model": "m", "seeds": (1, 2), "ridge": 0.01}).cell(
            cell.method, cell.target_sparsity, cell.seed
        ) == cell  # fmt: skip
    assert folder.cell("evolution", 0.25, 2) is None
    assert not list((tmp_path / "x").rglob("*writing*"))


def test_a_folder_is_for_one_setting(tmp_path):
    ComparisonFolder(tmp_path, {"model": "m", "ridge": 0.01}).add(CELL)
    with pytest.raises(ValueError, match=r"was made with ridge 0.01, not 0.1: give another --out"):
        ComparisonFolder(tmp_path, {"model": "m", "ridge": 0.1})
    with pytest.raises(ValueError, match="was made with channels_per_group None, not 32"):
        ComparisonFolder(tmp_path, {"model": "m", "ridge": 0.01, "channels_per_group": 32})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"method": "ppo"}'])
def test_a_damaged_cell_is_named(tmp_path, content):
    folder = ComparisonFolder(tmp_path, {})
    folder.add(CELL)
    (tmp_path / cell_name("ppo", 0.2, 0)).write_text(content)
    with pytest.raises(ValueError, match=r"ppo-s20-seed0\.json is damaged, remove it to measure it again"):
        folder.cell("ppo", 0.2, 0)


@pytest.fixture
def compare(monkeypatch, tiny_folder, text_file, tmp_path, capsys):
    """Runs the script on a tiny model with a tiny budget."""
    monkeypatch.setenv("COLUMNS", "200")
    module = load_script("evaluate/compare.py")
    flags = {
        "--model": tiny_folder, "--text": text_file, "--out": tmp_path / "out", "--seq-len": 64, "--search-windows": 2,
        "--calibration-windows": 4, "--test-seq-len": 64, "--test-windows": 3, "--dtype": "float32",
        "--evaluations": 12,
    }  # fmt: skip

    def run(*words, **changes):
        settings = flags | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        monkeypatch.setattr(
            sys, "argv", ["compare.py", *(str(x) for pair in settings.items() for x in pair), *map(str, words)]
        )
        code = module.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    run.module, run.flags = module, flags
    run.out = tmp_path / "out"
    return run


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
        patch.setattr(compare.module, "build_evaluator", no_ranking)
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
    counted = f"curves {shown['curve_windows']} of 128 tokens, calibration {shown['calibration_windows']} of 128 tokens"
    for suffix in ("md", "html"):
        text = (compare.out / f"comparison.{suffix}").read_text()
        assert f"search 2 of 128 tokens, finalists 8 of 128 tokens, {counted}, test 3 of 128 tokens" in text
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

    def stub(model, tokenizer, tasks, limit):
        asked.append(model.model.layers[0].mlp.down_proj.in_features)
        if len(asked) == 3:
            raise RuntimeError("out of memory")
        return ZeroShot({"boolq": TaskResult(0.5, 0.1, None, None, limit, "acc")})

    monkeypatch.setattr(compare.module, "open_tasks", lambda data_dir: nullcontext({"boolq": None}))
    monkeypatch.setattr(compare.module, "score_tasks", stub)
    flags = ("--methods", "uniform", "evolution", "--seeds", "2")
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


def test_search_never_sees_test_text(windows):
    """Two subjects that differ in test text alone give the same answers, and other test perplexities."""
    first = subject_of(tiny_model("llama-gqa"), windows)
    second = replace(first, test_windows=windows.flip(1))
    for name in ("evolution", "evopress", "ppo", "flap", "fisher"):
        one, other = (search_and_measure(subject, name, METHODS[name], 0.3, 0, 16) for subject in (first, second))
        assert (one.kept, one.trace, one.search_ppl) == (other.kept, other.trace, other.search_ppl)
        assert one.test_ppl != other.test_ppl


def test_a_dense_model_without_a_finite_perplexity_is_reported(tmp_path):
    folder = ComparisonFolder(tmp_path, {})
    folder.dense = {"units": [], "n_params": 10, "dense_test_ppl": math.inf, "dense_interval": (math.inf, math.inf)}
    comparison = folder.comparison([CELL], {})
    assert comparison.dense_test_ppl == math.inf
    assert comparison.dense_interval == (math.inf, math.inf)
    folder.dense = {**folder.dense, "dense_interval": None}  # as it is of few test windows
    assert folder.comparison([CELL], {}).dense_interval is None
    folder.write("dense.json", {"units": []})
    with pytest.raises(ValueError, match=r"dense\.json is damaged"):
        folder.comparison([CELL], {})


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


def test_cells_of_two_dtypes_do_not_share_a_folder(compare, monkeypatch):
    assert compare("--methods", "uniform", dtype="auto")[0] == 0
    manifest = json.loads((compare.out / "manifest.json").read_text())
    (compare.out / "manifest.json").write_text(json.dumps(manifest | {"dtype": "torch.float16"}))
    code, _, err = compare("--methods", "flap", dtype="auto")
    assert code == 2
    assert "was measured in torch.float16, not" in err
    assert not (compare.out / "cells" / "flap-s20.json").exists()


def test_a_folder_is_of_one_model_one_text_and_one_code(compare, monkeypatch, tiny_folder, text_file, tmp_path):
    """Refused in one line, without a table, whether something is still to be measured or not; and nothing is lost."""
    model, text = tmp_path / "model", tmp_path / "words.txt"
    shutil.copytree(tiny_folder, model)
    shutil.copy(text_file, text)
    monkeypatch.setitem(compare.flags, "--model", model)
    monkeypatch.setitem(compare.flags, "--text", text)
    assert compare("--methods", "uniform")[0] == 0
    before = {path: path.read_bytes() for path in compare.out.rglob("*") if path.is_file()}
    identity = json.loads((compare.out / "identity.json").read_text())
    assert json.loads((compare.out / "cells" / "uniform-s20.json").read_text())["identity"] == identity

    def refused(says):
        for methods in (("uniform",), ("uniform", "flap")):
            code, out, err = compare("--methods", *methods)
            assert code == 2
            (line,) = err.splitlines()
            assert re.search(says, line), line
            assert "PPL" not in out
        assert {path: path.read_bytes() for path in compare.out.rglob("*") if path.is_file()} == before

    weights = load_file(model / "model.safetensors")
    changed = {**weights, "model.norm.weight": weights["model.norm.weight"] * 2}
    save_file(changed, model / "model.safetensors", metadata={"format": "pt"})
    refused(r"the weights of .*/model have changed since .*/out was begun: give another --out")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    words = text.read_text()
    text.write_text(words.replace("line 1 ", "row 1 "))
    refused(r"the text for finalists .*/words.txt has changed since .*/out was begun: give another --out")
    before_test = int(0.68 * len(words))
    text.write_text(words[:before_test] + words[before_test:].upper())
    refused(r"the test text .*/words.txt has changed since")
    text.write_text(words)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["ffprune_env.lm.identity"], "source_digest", lambda package: "edited")
        code, _, err = compare("--methods", "uniform", "flap")
        assert (code, "the source of ffprune has changed since" in err) == (2, True)
        code, out, err = compare("--methods", "uniform")  # nothing is measured: what is there may be shown
        assert (code, err) == (0, "")
    (compare.out / "identity.json").unlink()
    code, out, err = compare("--methods", "uniform")
    assert code == 2
    assert "holds no identity.json" in err
    assert "PPL" not in out


def test_cells_that_are_added_are_of_the_order_that_was_there(compare, request):
    assert compare("--methods", "uniform", "ffn-only")[0] == 0
    file = compare.out / "cells" / "ffn-only-s20.json"
    before = json.loads(file.read_text())
    file.unlink()
    order = (compare.out / "order.json").read_bytes()
    request.getfixturevalue("other_scores")
    assert compare("--methods", "uniform", "ffn-only")[0] == 0
    assert json.loads(file.read_text()) | {"seconds": 0} == before | {"seconds": 0}
    assert (compare.out / "order.json").read_bytes() == order
    with pytest.raises(ValueError, match=r"another process ranked the model otherwise for .*: give the command again"):
        ComparisonFolder(compare.out, json.loads((compare.out / "settings.json").read_text())).write("order.json", {})
    (compare.out / "order.json").unlink()
    code, out, err = compare("--methods", "uniform", "ffn-only", "flap")
    assert (code, "PPL" in out) == (2, False)
    (line,) = err.splitlines()
    assert "holds no order.json, and so does not say which heads and channels it measured" in line


def test_a_cell_of_another_folder_or_other_defaults_is_refused_by_name(compare, monkeypatch):
    assert compare("--methods", "ppo")[0] == 0
    file = compare.out / "cells" / "ppo-s20-seed0.json"
    cell = json.loads(file.read_text())
    assert cell["settings"]["learning_rate"] == 1e-3
    other = cell | {"identity": cell["identity"] | {"weights": "others"}}
    file.write_text(json.dumps(other))
    code, out, err = compare("--methods", "ppo")
    assert code == 2
    (line,) = err.splitlines()
    assert re.search(r"the weights have changed since .*/ppo-s20-seed0.json was measured: remove", line)
    assert "PPL" not in out
    file.write_text(json.dumps(cell))
    settings = SearchSettings(learning_rate=3e-4)
    with monkeypatch.context() as patch:
        patch.setitem(ANSWERING, "ppo", Method(partial(ppo, settings=settings), searches=True))
        code, out, err = compare("--methods", "ppo")
    assert code == 2
    (line,) = err.splitlines()
    assert "ppo-s20-seed0.json was measured with learning_rate 0.001, not 0.0003: remove it" in line
    assert "PPL" not in out
    assert json.loads(file.read_text()) == cell


def test_what_was_copied_into_a_folder_is_refused_by_name(compare):
    """A cell under another name, and a cell and the dense model of a comparison with another setting."""
    other = compare.out.with_name("other")
    assert compare("--methods", "uniform")[0] == 0
    assert compare("--methods", "uniform", "ffn-only", out=other, evaluations=24)[0] == 0

    def refused(name, source, says):
        before = (compare.out / name).read_bytes() if (compare.out / name).exists() else None
        shutil.copy(source, compare.out / name)
        code, out, err = compare("--methods", "uniform", "ffn-only")
        assert (code, "PPL" in out) == (2, False)
        (line,) = err.splitlines()
        assert re.search(says, line), line
        (compare.out / name).unlink() if before is None else (compare.out / name).write_bytes(before)

    cells = compare.out / "cells"
    renamed = "ffn-only-s20.json holds what belongs to cells/uniform-s20.json: remove"
    refused("cells/ffn-only-s20.json", cells / "uniform-s20.json", renamed)
    changed = "--evaluations has changed from 24 to 12 since .*{} was measured"
    refused("cells/ffn-only-s20.json", other / "cells" / "ffn-only-s20.json", changed.format("ffn-only-s20.json"))
    refused("dense.json", other / "dense.json", changed.format("dense.json"))


def test_two_comparisons_that_begin_at_once_with_other_settings_do_not_share_a_folder(compare, monkeypatch):
    """Both have found the folder empty; the one that writes later is refused, and the other's table is its own."""
    prepare, flags = compare.module.prepare, ("--methods", "uniform")

    def after_the_other(args, folder, *rest):
        monkeypatch.setattr(compare.module, "prepare", prepare)
        words = list(sys.argv)
        assert compare(*flags, evaluations=24)[0] == 0
        sys.argv = words
        return prepare(args, folder, *rest)

    monkeypatch.setattr(compare.module, "prepare", after_the_other)
    code, out, err = compare(*flags)
    assert (code, "PPL" in out) == (2, False)
    (line,) = err.splitlines()
    assert re.search("--evaluations has changed from 24 to 12 since .*: give another --out", line)
    assert compare(*flags, evaluations=24)[0] == 0


def test_questions_are_told_apart_by_what_they_are(compare, tmp_path):
    args = compare.module.Args(data_dir=tmp_path, limit=7)
    digests = []
    for answer in ("yes", "no"):
        for task in TASKS:
            (tmp_path / f"{task}.jsonl").write_text(f"{task}: {answer}\n")
        digests.append(compare.module.questions(args))
    assert {name for name in digests[0] if digests[0][name] != digests[1][name]} == {"data"}


def test_a_cell_says_how_it_was_calibrated_and_is_marked_where_that_is_not_as_asked(compare, monkeypatch, caplog):
    """Memory runs out for one method: those after it are calibrated in sequence, and nothing is mixed in silently."""
    fit, fitted = SequentialCalibration._fit, []

    def first_fails(self, *given):
        fitted.append(self)
        if len(fitted) == 1:
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


def test_zero_shot_asks_the_model_whose_perplexity_stands_beside(windows, monkeypatch):
    """What was calibrated by Eqs. 6-7 alone stays so, though memory would do now; and what was not is not asked so."""
    subject = subject_of(tiny_model("llama-gqa"), windows)
    evaluator = subject.evaluator
    evaluator._sequential = True
    asked = []

    def ask(model):
        asked.append(perplexity(model, windows))
        return ZeroShot({"boolq": TaskResult(0.5, 0.1, None, None, 7, "acc")})

    subject = replace(subject, zero_shot=ask)
    uniform = METHODS["uniform"]
    with monkeypatch.context() as patch:
        patch.setattr(SequentialCalibration, "_fit", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
        ridge = search_and_measure(subject, "uniform", uniform, 0.3, None, 0)
    evaluator._fell_back.clear()
    sequential = search_and_measure(subject, "uniform", uniform, 0.3, None, 0)
    assert (ridge.calibration, sequential.calibration) == ("ridge", "sequential")
    for cell in (ridge, sequential):
        ask_final(subject, cell, uniform)
        assert asked[-1] == cell.calibrated_test_ppl
    assert asked[0] != asked[1]
    evaluator._fell_back.add((evaluator.prunable.rankings, np.array(sequential.kept).tobytes()))
    with pytest.raises(RuntimeError, match="of a model calibrated as sequential, and that fails now"):
        ask_final(subject, sequential, uniform)


def test_every_setting_of_a_method_is_known():
    assert settings_of(METHODS["ppo"]) == {**asdict(SearchSettings()), "plain_reward": False, "flap_bias": False}
    assert settings_of(METHODS["fisher-iterated"])["steps"] == 8
    assert settings_of(METHODS["flap-bias"]) == {"plain_reward": False, "flap_bias": True}
    assert settings_of(ABLATIONS["ppo-greedy"])["mapping"] == "greedy"


def test_another_setting_is_refused_and_loses_nothing(compare):
    assert compare("--methods", "uniform")[0] == 0
    code, _, err = compare("--methods", "uniform", seq_len=32)
    assert code == 2
    assert "was made with seq_len 64, not 32: give another --out" in err
    assert (compare.out / "cells" / "uniform-s20.json").exists()


def searches_of(monkeypatch):
    """The targets of every search by PPO from now on."""
    module, targets = sys.modules["ffprune_env.methods.ppo"], []
    run_search = module.run_search

    def count(settings, *arguments, **named):
        targets.append(settings.targets)
        return run_search(settings, *arguments, **named)

    monkeypatch.setattr(module, "run_search", count)
    return targets


def test_one_search_fills_the_cells_of_all_its_sparsities(windows, monkeypatch):
    """Each pays its share of the budget of all; a comparison that goes on runs the search again, and finds the same."""
    sparsities, evaluations = (0.2, 0.3, 0.4), 20
    searches = searches_of(monkeypatch)

    def ask(subject, sparsity, seed=1):
        return search_and_measure(subject, "policy", METHODS["policy"], sparsity, seed, evaluations)

    subject = replace(subject_of(tiny_model("llama-gqa"), windows), targets=sparsities)
    cells = [ask(subject, sparsity) for sparsity in sparsities]
    assert searches == [sparsities]
    assert [cell.settings["targets"] for cell in cells] == [[*sparsities]] * 3
    for name in ("evaluations", "tokens", "tokens_seen", "seconds"):
        assert len({getattr(cell, name) for cell in cells}) == 1
    spent = sum(cell.evaluations for cell in cells)
    assert 0.5 * 3 * evaluations < spent <= 3 * evaluations + 1e-9
    assert cells[0].tokens == round(cells[0].evaluations * windows.numel())
    evaluator = subject.evaluator
    evaluator.forget()
    problem = Problem.of(evaluator, 0.2, evaluations=3 * evaluations, seed=1, targets=sparsities)
    found = METHODS["policy"].answer_all(problem)
    assert problem.meter.spent == pytest.approx(spent * evaluator.max_samples)
    assert problem.meter.seen * windows.shape[1] == pytest.approx(sum(cell.tokens_seen for cell in cells), abs=1.5)
    for cell in cells:
        assert cell.kept == found[cell.target_sparsity].allocation.kept.tolist()
        assert cell.sparsity >= cell.target_sparsity
        tokens = [at for at, _ in cell.trace]
        assert tokens == sorted(tokens)
        assert tokens[-1] == cell.tokens
        assert cell.trace[-1][1] == cell.search_ppl == evaluator.measure(np.array(cell.kept), evaluator.max_samples)
    searches.clear()
    later = replace(subject_of(tiny_model("llama-gqa"), windows), targets=sparsities)
    assert replace(ask(later, 0.3), seconds=0) == replace(cells[1], seconds=0)
    ask(later, 0.3, seed=2)
    ask(replace(later, targets=(0.3,)), 0.3)
    assert searches == [sparsities, sparsities, (0.3,)]


def test_policy_goes_on_after_a_cut_and_other_sparsities_are_another_search(compare, monkeypatch):
    flags, cells = ("--methods", "uniform", "policy", "--sparsity"), compare.out / "cells"
    searches = searches_of(monkeypatch)
    code, out, err = compare(*flags, "0.2", "0.3")
    assert code == 0, err
    assert searches == [(0.2, 0.3)]
    assert "all σ" in out
    whole = {path.name: path.read_bytes() for path in cells.iterdir()}
    assert {"policy-s20-of-20-30-seed0.json", "policy-s30-of-20-30-seed0.json"} <= whole.keys()
    (cells / "policy-s30-of-20-30-seed0.json").unlink()
    assert compare(*flags, "0.2", "0.3")[0] == 0
    assert searches == [(0.2, 0.3)] * 2
    for name, content in whole.items():
        again = json.loads((cells / name).read_bytes())
        assert again | {"seconds": 0} == json.loads(content) | {"seconds": 0}
    before = {path.name: path.read_bytes() for path in cells.iterdir()}
    assert compare(*flags, "0.2", "0.3", "0.4")[0] == 0
    assert searches[2:] == [(0.2, 0.3, 0.4)]
    after = {path.name: path.read_bytes() for path in cells.iterdir()}
    assert before.items() < after.items()
    assert len(after) == len(before) + 4  # `uniform` at 0.4, and one search for three
    shown = json.loads((compare.out / "comparison.json").read_text())["cells"]
    assert [cell["settings"]["targets"] for cell in shown if cell["method"] == "policy"] == [[0.2, 0.3, 0.4]] * 3
    old = cells / "policy-s20-of-20-30-seed0.json"
    shutil.copy(old, cells / "policy-s20-of-20-30-40-seed0.json")
    code, out, err = compare(*flags, "0.2", "0.3", "0.4")
    assert (code, "PPL" in out) == (2, False)
    (line,) = err.splitlines()
    assert "holds what belongs to cells/policy-s20-of-20-30-seed0.json: remove it" in line


def test_one_sparsity_has_no_use_for_one_search_for_all():
    assert "policy" not in named_methods((), False, (0.2,))
    assert named_methods(("policy",), False, (0.2,)) == ["policy"]
    assert "policy" in named_methods((), False, (0.2, 0.3))
    assert named_methods((), True, (0.2, 0.3)) == list(ABLATIONS)


def test_a_folder_is_of_one_start_and_one_of_before_is_of_everybody_s_own(compare):
    assert compare("--methods", "uniform", "evolution", "--start", "none")[0] == 0
    assert json.loads((compare.out / "comparison.json").read_text())["settings"]["start"] == "none"
    code, _, err = compare("--methods", "uniform")
    assert code == 2
    assert "was made with start 'none', not 'own': give another --out" in err
    other = compare.out.with_name("before")
    assert compare("--methods", "uniform", out=other)[0] == 0
    for name in ("settings.json", "identity.json"):
        file = other / name
        content = json.loads(file.read_text())
        content.pop("start" if name == "settings.json" else "--start")
        file.write_text(json.dumps(content))
    for file in (other / "dense.json", *(other / "cells").iterdir()):
        content = json.loads(file.read_text())
        content["identity"].pop("--start")
        file.write_text(json.dumps(content))
    assert compare("--methods", "uniform", "ffn-only", out=other)[0] == 0
    code, _, err = compare("--methods", "uniform", "--start", "ffn-only", out=other)
    assert code == 2
    assert "was made with start 'own', not 'ffn-only'" in err


def test_the_start_reaches_every_search(windows, monkeypatch):
    subject = replace(subject_of(tiny_model("llama-gqa"), windows), targets=(0.2, 0.3))
    names, asked = [name for name, method in METHODS.items() if method.searches], []
    real = Problem.of.__func__

    def record(cls, *arguments, **named):
        problem = real(cls, *arguments, **named)
        asked.append(problem.init)
        return problem

    monkeypatch.setattr(Problem, "of", classmethod(record))
    uniform = METHODS["uniform"].answer(Problem.of(subject.evaluator, 0.3)).kept.tolist()
    asked.clear()
    for name in names:
        measured = []
        with monkeypatch.context() as patch:
            for function in ("measure", "compare"):
                known = getattr(Meter, function)

                def keep(self, kept, n_samples, known=known, measured=measured):
                    measured.append(kept.tolist())
                    return known(self, kept, n_samples)

                patch.setattr(Meter, function, keep)
            search_and_measure(replace(subject, start="none"), name, METHODS[name], 0.3, 0, 20)
        if name not in ("ppo", "policy"):  # which measure samples around it
            assert measured[0] == uniform
    assert asked == ["none"] * len(names)
