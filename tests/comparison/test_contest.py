"""Methods against each other: every answer is measured alike."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import tiny_model
from tiny_subject import subject_of

import ffprune_env as ff
from ffprune_env.comparison.contest import ask_final, search_and_measure
from ffprune_env.comparison.rebuilt import REBUILDERS, rebuild_and_measure
from ffprune_env.comparison.subject import Subject
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.final_calibration import FinalCalibration
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.zero_shot import TaskResult, ZeroShot
from ffprune_env.lm.loss import perplexity
from ffprune_env.methods.ablations import ABLATIONS
from ffprune_env.methods.registry import METHODS, settings_of
from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores, wifv_scores
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.search.settings import SearchSettings


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


@pytest.mark.parametrize("name", ["eas", "ppo", "ppo-paper"])
def test_candidates_are_counted_and_not_what_is_measured_beside_them_or_at_last(windows, monkeypatch, name):
    """Of a curriculum there are more than the evaluations that are paid for."""
    subject = subject_of(tiny_model("llama-gqa"), windows)
    for evaluator in (subject.evaluator, subject.plain):
        evaluator.texts["pool"] = evaluator.further = windows.flip(0)
    stepped, real = [], PruneBanditEnv.step
    monkeypatch.setattr(PruneBanditEnv, "step", lambda self, action: stepped.append(1) or real(self, action))
    cell = search_and_measure(subject, name, METHODS[name], 0.3, 0, 40)
    if name == "eas":
        assert cell.candidates == cell.evaluations == 40
    else:
        assert cell.candidates == len(stepped)
        assert (cell.candidates > cell.evaluations) == (name == "ppo-paper")


def test_the_time_of_the_final_calibration_is_noted_apart(windows, monkeypatch):
    subject = subject_of(tiny_model("llama-gqa"), windows)
    evaluator = subject.evaluator
    monkeypatch.setattr(evaluator, "final_calibration", lambda kept: time.sleep(0.2) or evaluator.calibration)
    cell = search_and_measure(subject, "uniform", METHODS["uniform"], 0.3, None, 0)
    assert cell.calibration_seconds > 0.2 > cell.seconds
    assert rebuild_and_measure(subject, "slicegpt", 0.3)[0].calibration_seconds is None


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
    again = search_and_measure(subject, "flap", METHODS["flap"], 0.3, None, 0)
    assert ridge == replace(again, seconds=ridge.seconds, calibration_seconds=ridge.calibration_seconds)
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
    assert cell.lacks_update == 0
    if name == "svd-llm":  # four tokens would be needed per rank
        short = replace(subject, calibration_windows=windows[:1, :8])
        assert rebuild_and_measure(short, name, 0.3)[0].lacks_update > 0
    assert perplexity(prunable.model, windows) == dense


def test_search_never_sees_test_text(windows):
    """Two subjects that differ in test text alone give the same answers, and other test perplexities."""
    first = subject_of(tiny_model("llama-gqa"), windows)
    second = replace(first, test_windows=windows.flip(1))
    for name in ("evolution", "evopress", "ppo", "flap", "fisher"):
        one, other = (search_and_measure(subject, name, METHODS[name], 0.3, 0, 16) for subject in (first, second))
        assert (one.kept, one.trace, one.search_ppl) == (other.kept, other.trace, other.search_ppl)
        assert one.test_ppl != other.test_ppl


def test_zero_shot_asks_the_model_whose_perplexity_stands_beside(windows, monkeypatch):
    """What was calibrated by Eqs. 6-7 alone stays so, though memory would do now; and what was not is not asked so."""
    subject = subject_of(tiny_model("llama-gqa"), windows)
    evaluator = subject.evaluator
    evaluator.in_sequence = FinalCalibration(evaluator.calibration, evaluator.texts["calibration"])
    asked = []

    def ask(model):
        asked.append(perplexity(model, windows))
        return ZeroShot({"boolq": TaskResult(0.5, 0.1, None, None, 7, "acc")})

    subject = replace(subject, zero_shot=ask)
    uniform = METHODS["uniform"]
    with monkeypatch.context() as patch:
        patch.setattr(SequentialCalibration, "_fit", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
        ridge = search_and_measure(subject, "uniform", uniform, 0.3, None, 0)
    evaluator.in_sequence._fell_back.clear()
    sequential = search_and_measure(subject, "uniform", uniform, 0.3, None, 0)
    assert (ridge.calibration, sequential.calibration) == ("ridge", "sequential")
    for cell in (ridge, sequential):
        ask_final(subject, cell, uniform)
        assert asked[-1] == cell.calibrated_test_ppl
    assert asked[0] != asked[1]
    evaluator.in_sequence._fell_back.add((evaluator.prunable.rankings, np.array(sequential.kept).tobytes()))
    with pytest.raises(RuntimeError, match="of a model calibrated as sequential, and that fails now"):
        ask_final(subject, sequential, uniform)


def test_every_setting_of_a_method_is_known():
    assert settings_of(METHODS["ppo"]) == {**asdict(SearchSettings()), "plain_reward": False, "flap_bias": False}
    assert settings_of(METHODS["fisher-iterated"])["steps"] == 8
    assert settings_of(METHODS["flap-bias"]) == {"plain_reward": False, "flap_bias": True}
    assert settings_of(ABLATIONS["ppo-greedy"])["mapping"] == "greedy"


@pytest.mark.parametrize("heads", ["single", "balanced"])
def test_parameters_are_those_of_the_model_that_would_be_written(windows, tmp_path, heads):
    """Keys and values that no query head reads any more are in memory, and not in a file."""
    prunable = PrunableModel(tiny_model("llama-gqa"), heads=heads)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    texts = {"finalists": windows.flip(1), "curves": windows, "calibration": windows}
    evaluator = LMEvaluator(prunable, windows, 1, ff.RidgeCalibration(prunable, stats), True, stats, texts=texts)
    subject = Subject(evaluator, evaluator, windows, windows)
    cell = search_and_measure(subject, "uniform", METHODS["uniform"], 0.7, None, 0)
    ff.save_pruned(prunable, cell.kept, tmp_path / "model", calibration=evaluator.calibration)
    assert cell.params == ff.load_pruned(tmp_path / "model", device="cpu").num_parameters()
