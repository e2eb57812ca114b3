"""Sequential calibration against a slow obvious reference, and when it refuses."""

from __future__ import annotations

import io
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FAMILIES, tiny_model
from plain import plain
from rich.console import Console
from test_calibration import ranked

import ffprune_env as ff
from ffprune_env.budget.allocation import whole
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.export.model_card import CardFacts, model_card
from ffprune_env.lm.head import decoder_outputs
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.run.measuring import measure_policies
from ffprune_env.run.results import best_policy
from ffprune_env.run.results_table import results_table
from ffprune_env.texts.openings import openings_of

# Gemma 2 has norms behind its units.
RESIDUAL = [family for family in FAMILIES if family != "gemma2"]


def pruned_three_quarters(family):
    """A ranked model, calibrated by Eqs. 6-7, windows, and three quarters of its groups."""
    prunable, stats, windows = ranked(family)
    kept = np.array([max(1, unit.n_groups * 3 // 4) for unit in prunable.units])
    return prunable, RidgeCalibration(prunable, stats), windows, kept


class Given:
    """A calibration with given weights."""

    def __init__(self, prunable, weights):
        self.prunable, self.weights = prunable, weights

    def weight(self, i, k):
        return self.weights[i]

    def bias(self, i, k):
        return None


def seen(prunable, windows):
    """Of every unit in a run of the whole model as it is now: the input of its output projection, and the hidden state
    behind it."""
    inputs, after, layer_inputs = [], [], []
    hooks = []
    for layout in prunable.layouts:
        hooks.append(layout.output.register_forward_hook(lambda m, args, out: inputs.append((args[0], out))))
    for layer in prunable.model.get_decoder().layers:
        hooks.append(layer.register_forward_hook(lambda m, args, out: layer_inputs.append((args[0], out))))
    with torch.no_grad():
        decoder_outputs(prunable.model, windows)
    for hook in hooks:
        hook.remove()
    for number, (before, behind) in enumerate(layer_inputs):
        after += [before + inputs[2 * number][1].view(before.shape), behind]
    return [x.flatten(0, -2) for x, _ in inputs], [h.flatten(0, -2) for h in after]


def seen_in(prunable, windows, openings):
    """The same, of windows and then of openings, if there are any."""
    runs = [seen(prunable, text) for text in (windows, openings) if text is not None]
    return [[torch.cat(parts) for parts in zip(*kind, strict=True)] for kind in zip(*runs, strict=True)]


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("family", RESIDUAL)
def test_every_weight_is_the_direct_solution_in_whole_runs_of_both_models(family, opened):
    prunable, first, windows, kept = pruned_three_quarters(family)
    openings = openings_of(windows, 5, "never") if opened else None
    prior = 0.1 * windows.numel()
    got = SequentialCalibration(first, kept, windows, prior_tokens=prior, batch_size=3, openings=openings)
    _, wanted = seen_in(prunable, windows, openings)
    weights = [first.weight(i, int(k)) for i, k in enumerate(kept)]
    for i, k in enumerate(kept):
        with prunable.pruned(kept, Given(prunable, weights)):
            inputs, after = seen_in(prunable, windows, openings)
        root = wanted[i].double().square().mean(-1, keepdim=True) ** 0.25  # long hidden states count for less
        x, error = inputs[i].double() / root, (wanted[i] - after[i]).double() / root
        share = prior / len(x)
        gram = x.T @ x + share * (x.T @ x).diagonal().mean() * torch.eye(x.shape[1], dtype=torch.float64)
        weights[i] = weights[i] + torch.linalg.solve(gram, x.T @ error).T
        assert torch.allclose(got.weight(i, int(k)), weights[i], atol=1e-4 * float(weights[i].abs().max()))


@pytest.mark.parametrize("family", RESIDUAL)
def test_the_final_hidden_state_comes_closer_to_the_dense_one(family):
    prunable, first, windows, kept = pruned_three_quarters(family)
    sequential = SequentialCalibration(first, kept, windows, prior_tokens=0.01 * windows.numel())
    dense = seen(prunable, windows)[1][-1]
    errors = []
    for calibration in (first, sequential):
        with prunable.pruned(kept, calibration):
            errors.append(float((seen(prunable, windows)[1][-1] - dense).norm()))
    assert errors[1] < 0.9 * errors[0]


def test_the_model_is_dense_again_afterwards_bit_for_bit_and_hooks_are_gone():
    prunable, first, windows, kept = pruned_three_quarters("llama-gqa")
    before = [p.detach().clone() for p in prunable.model.parameters()]
    SequentialCalibration(first, kept, windows)
    assert all(torch.equal(p, q) for p, q in zip(before, prunable.model.parameters(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in prunable.model.modules())


def test_the_batch_size_makes_no_difference():
    _, first, windows, kept = pruned_three_quarters("mistral")  # a sliding window: layers are given a mask
    one, all_at_once = (SequentialCalibration(first, kept, windows, batch_size=size) for size in (1, len(windows)))
    for i, k in enumerate(kept):
        assert torch.allclose(one.weight(i, int(k)), all_at_once.weight(i, int(k)), atol=1e-5)


def test_a_strong_prior_leaves_the_first_calibration():
    _, first, windows, kept = pruned_three_quarters("opt")
    sequential = SequentialCalibration(first, kept, windows, prior_tokens=1e12)
    for i, k in enumerate(kept):
        assert torch.allclose(sequential.weight(i, int(k)), first.weight(i, int(k)), atol=1e-6)


def test_it_serves_its_own_allocation_only():
    prunable, first, windows, kept = pruned_three_quarters("llama")
    sequential = SequentialCalibration(first, kept, windows)
    other = kept.copy()
    other[1] -= 1
    with pytest.raises(ValueError, match=r"calibrated in sequence with 18 groups kept, got 17"):
        prunable.pruned(other, sequential).__enter__()
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    with pytest.raises(RuntimeError, match="ranked again"):
        sequential.weight(0, int(kept[0]))


def test_layers_that_are_not_residual_are_refused_before_anything_is_fitted(tokenizer, text_file):
    _, first, windows, kept = pruned_three_quarters("gemma2")
    with pytest.raises(ValueError, match=r"Gemma2ForCausalLM cannot be calibrated in sequence.*--calibration ridge"):
        SequentialCalibration(first, kept, windows)
    settings = {"seq_len": 32, "search_windows": 2, "calibration_windows": 4}
    model = tiny_model("gemma2")
    with pytest.raises(ValueError, match="--calibration ridge"):
        build_evaluator(model, tokenizer, str(text_file), plain(calibration="sequential", **settings))
    assert (
        build_evaluator(model, tokenizer, str(text_file), plain(calibration="ridge", **settings)).calibration
        is not None
    )


@pytest.mark.parametrize("prior", [0, -1, math.nan, math.inf])
def test_a_prior_that_is_none_is_refused(prior):
    _, first, windows, kept = pruned_three_quarters("llama")
    with pytest.raises(ValueError, match="prior_tokens must be a finite number above 0"):
        SequentialCalibration(first, kept, windows, prior)


def test_a_unit_that_never_fires_is_left_as_it_is():
    prunable, stats, windows = ranked("opt")
    model = tiny_model("opt")
    layer = model.get_decoder().layers[1]
    with torch.no_grad():
        layer.fc1.weight.zero_()
        layer.fc1.bias.fill_(-1)
    prunable = PrunableModel(model)
    stats = ff.collect_statistics(prunable, windows)
    prunable.rank(ff.wanda_scores(prunable, stats))
    first = RidgeCalibration(prunable, stats)
    kept = np.array([max(1, unit.n_groups * 3 // 4) for unit in prunable.units])
    sequential = SequentialCalibration(first, kept, windows)
    assert torch.equal(sequential.weight(3, int(kept[3])), first.weight(3, int(kept[3])))


def test_the_evaluator_makes_one_for_every_policy_and_remembers_the_last(tokenizer, text_file):
    settings = {"seq_len": 32, "search_windows": 2, "calibration_windows": 4}
    evaluator = build_evaluator(
        tiny_model("llama"), tokenizer, str(text_file), plain(calibration="sequential", **settings)
    )
    kept = np.array([max(1, unit.n_groups // 2) for unit in evaluator.units])
    made = evaluator.final_calibration(kept)
    assert isinstance(made, SequentialCalibration)
    assert evaluator.final_calibration(kept) is made
    assert evaluator.final_calibration(kept + 1) is not made
    evaluator.prunable.rank([np.arange(unit.n_groups) for unit in evaluator.units])
    with pytest.raises(RuntimeError, match="ranked again"):
        evaluator.final_calibration(kept + 1)
    alone = build_evaluator(tiny_model("llama"), tokenizer, str(text_file), plain(calibration="ridge", **settings))
    assert alone.final_calibration(kept) is alone.calibration
    assert "then in sequence, λ = 8192 tokens" in model_card(evaluator.prunable, kept, made, CardFacts())


@pytest.fixture
def in_sequence(tokenizer, text_file):
    """An evaluator that calibrates in sequence, and an allocation."""
    settings = {"seq_len": 32, "search_windows": 2, "calibration_windows": 4}
    evaluator = build_evaluator(
        tiny_model("llama"), tokenizer, str(text_file), plain(calibration="sequential", **settings)
    )
    return evaluator, np.array([max(1, unit.n_groups // 2) for unit in evaluator.units])


def test_where_memory_runs_out_the_first_calibration_serves_this_policy_for_good(in_sequence, monkeypatch, caplog):
    """What is written is what was reported, even if there would be room again; another policy is tried again."""
    evaluator, kept = in_sequence
    alive = [weakref.ref(evaluator.final_calibration(kept))]

    def fail(*_):
        assert alive[0]() is None, "the calibration before takes room"
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(SequentialCalibration, "_fit", fail)
        assert evaluator.final_calibration(kept + 1) is evaluator.calibration
    assert caplog.messages[-1].startswith("out of memory: this model is calibrated by Eqs. 6-7 alone")
    assert isinstance(evaluator.final_calibration(kept), SequentialCalibration)
    assert evaluator.final_calibration(kept + 1) is evaluator.calibration


def test_results_say_how_they_were_calibrated_and_are_compared_with_none_that_were_not(
    in_sequence, windows, monkeypatch
):
    evaluator, kept = in_sequence
    policies = {"dense": whole(evaluator.units)}
    policies |= {"uniform": ff.uniform(0.3, evaluator.units), "chosen": ff.ffn_only(0.2, evaluator.units)}
    fit = SequentialCalibration._fit

    def only_chosen(self, *given):
        if np.array_equal(self.kept, policies["uniform"].kept):
            raise torch.OutOfMemoryError
        fit(self, *given)

    monkeypatch.setattr(SequentialCalibration, "_fit", only_chosen)
    results = measure_policies(evaluator, policies, windows)
    assert {name: x.calibration for name, x in results.plain.items()} == dict.fromkeys(policies, "none")
    kinds = {name: x.calibration for name, x in results.calibrated.items()}
    assert kinds == {"dense": "sequential", "uniform": "ridge", "chosen": "sequential"}
    assert results.asked == "sequential"
    with evaluator.prunable.pruned(policies["uniform"].kept, evaluator.calibration) as model:
        assert results.calibrated["uniform"].test_ppl == ff.perplexity(model, windows)
    best = best_policy(evaluator, results, np.zeros(len(kept)), policies["chosen"])
    assert best["calibration"]["uniform"]["calibration"] == "ridge"
    assert best["calibration"]["uniform"]["calibrated"] is True
    assert best["sequential"] is True
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(
        results_table(replace(results, saved=results.calibrated["chosen"]), evaluator.texts | {"test": windows})
    )
    text = console.export_text()
    rows = {cells[0].strip(): cells[-1].strip() for line in text.splitlines() if len(cells := line.split("│")[1:-1])}
    assert rows["uniform, calibrated ‡"] == "+0.0%"
    assert rows["searched, calibrated"] == rows["searched, from disk"] == ""
    assert rows["searched"].endswith("%")
    assert "‡ calibrated by Eqs. 6-7 alone, not in sequence as asked for" in text


def test_without_a_fallback_nothing_is_marked(in_sequence, windows):
    evaluator, _ = in_sequence
    policies = {"uniform": ff.uniform(0.3, evaluator.units), "chosen": ff.ffn_only(0.2, evaluator.units)}
    console = Console(width=200, record=True, file=io.StringIO())
    results = measure_policies(evaluator, policies, windows)
    console.print(results_table(results, evaluator.texts | {"test": windows}))
    text = console.export_text()
    assert "‡" not in text
    assert text.count("%") == 4 * 3


def test_the_card_says_that_the_calibration_is_not_the_one_that_was_asked_for(in_sequence):
    evaluator, kept = in_sequence
    facts = CardFacts(calibration_asked="sequential")
    said = model_card(evaluator.prunable, kept, evaluator.calibration, facts)
    assert "λ = 0.01 of the mean diagonal of G; sequential was asked for and could not be made |" in said
    made = evaluator.final_calibration(kept)
    assert "asked for" not in model_card(evaluator.prunable, kept, made, facts)


def test_a_model_that_collapsed_is_calibrated_by_the_first_alone(tokenizer, text_file, caplog):
    settings = {"seq_len": 32, "search_windows": 2, "calibration_windows": 4}
    evaluator = build_evaluator(
        tiny_model("llama"), tokenizer, str(text_file), plain(calibration="sequential", **settings)
    )
    kept = np.array([max(1, unit.n_groups // 2) for unit in evaluator.units])
    with torch.no_grad():
        evaluator.calibration._products[2].fill_(math.inf)  # touches the model that is pruned alone
    assert evaluator.final_calibration(kept) is evaluator.calibration
    assert "attn: activations of the pruned model are not finite" in caplog.messages[-1]
    whole = np.array([unit.n_groups for unit in evaluator.units])
    assert isinstance(evaluator.final_calibration(whole), SequentialCalibration)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_the_dtype_of_a_real_model_it_is_nearly_what_it_is_in_float64(dtype):
    weights = []
    for at in (torch.float64, dtype):
        model = tiny_model("llama-gqa")
        prunable, _, windows = ranked("llama-gqa")
        order = prunable.order
        model.to(at)
        prunable = PrunableModel(model)
        stats = ff.collect_statistics(prunable, windows)
        prunable.rank([-np.argsort(np.argsort(x.cpu().numpy())).astype(float) for x in order])
        kept = np.array([max(1, unit.n_groups * 3 // 4) for unit in prunable.units])
        first = RidgeCalibration(prunable, stats)
        made = SequentialCalibration(first, kept, windows, prior_tokens=0.1 * windows.numel())
        changes = [made.weight(i, int(k)).double() - first.weight(i, int(k)).double() for i, k in enumerate(kept)]
        weights.append(torch.cat([change.flatten() for change in changes]))
    assert float((weights[1] - weights[0]).norm()) < 0.25 * float(weights[0].norm())


@pytest.mark.slow
def test_it_serves_text_that_it_has_not_seen(capsys):
    model, tokenizer = ff.load_model("smollm2-135m")
    evaluator = build_evaluator(
        model,
        tokenizer,
        "python-docs",
        plain(seq_len=1024, batch_size=None, search_windows=1, calibration="sequential"),
    )
    test = ff.load_windows("python-docs", tokenizer, "test", 2048, 8)
    dense = ff.perplexity(model, test)
    kept = ff.uniform(0.3, evaluator.units).kept
    excess = []
    for calibration in (evaluator.calibration, evaluator.final_calibration(kept)):
        with evaluator.prunable.pruned(kept, calibration):
            excess.append(math.log(ff.perplexity(model, test) / dense))
    with capsys.disabled():
        print(f"\nuniform, σ = 0.3, e(x): {excess[0]:.4f} by Eqs. 6-7, {excess[1]:.4f} with a correction in sequence")
    assert excess[1] < 0.95 * excess[0]


def test_where_memory_runs_out_fewer_windows_at_once_are_tried_before_it_is_given_up(in_sequence, monkeypatch, caplog):
    evaluator, kept = in_sequence
    evaluator.in_sequence.batch_size = None
    alone = evaluator.final_calibration(kept)
    evaluator.final_calibration(kept + 1)  # it is forgotten
    fit = SequentialCalibration._fit

    def fits_one(self, dense, advance):
        if len(dense.calls[0].hidden) > 1:
            raise torch.OutOfMemoryError
        fit(self, dense, advance)

    monkeypatch.setattr(SequentialCalibration, "_fit", fits_one)
    made = evaluator.final_calibration(kept)
    assert isinstance(made, SequentialCalibration)
    assert caplog.messages[-2:] == [
        "out of memory with 4 windows at once: calibrating in sequence with 2",
        "out of memory with 2 windows at once: calibrating in sequence with 1",
    ]
    for i, k in enumerate(kept):
        torch.testing.assert_close(made.weight(i, int(k)), alone.weight(i, int(k)), rtol=1e-3, atol=1e-4)
