"""Criteria that look at gradients, against the obvious computation; and the surgeon against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from plain import plain

import ffprune_env as ff
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.pruning.criteria import CRITERIA, Evidence, average_ranks, taylor_scores
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.surgeon import eliminate, surgeon_scores


@pytest.mark.parametrize("heads", ["single", "groups"])
def test_gradient_statistics_are_those_of_the_summed_loss(family, windows, heads):
    model = tiny_model(family)
    prunable = PrunableModel(model, heads=heads)
    inputs, outputs, hooks = [], [], []
    for layout in prunable.layouts:

        def keep(module, args, output):
            inputs.append(args[0].detach().flatten(0, -2))
            output.retain_grad()
            outputs.append(output)

        hooks.append(layout.output.register_forward_hook(keep))
    logits = model(windows).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    found = collect_gradients(prunable, windows)
    for i, layout in enumerate(prunable.layouts):
        g = outputs[i].grad.flatten(0, -2)
        carried = (g @ layout.output.weight.detach()) * inputs[i]
        expected = carried.view(len(g), -1, layout.width).sum(2).square().mean(0)
        np.testing.assert_allclose(found.carried[i], expected, rtol=1e-3)
        np.testing.assert_allclose(found.outputs[i], g.T @ g / len(g), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_in_original_order_whatever_the_order_now_is(name, windows):
    prunable = PrunableModel(tiny_model("llama-gqa"), heads="groups")

    def scores():
        stats = collect_statistics(prunable, windows)
        gradients = collect_gradients(prunable, windows)
        return CRITERIA[name].score(prunable, Evidence(stats, gradients, lambda: stats.grams, 0.01))

    before = scores()
    prunable.rank([np.random.default_rng(i).random(unit.n_groups) for i, unit in enumerate(prunable.units)])
    for one, other in zip(before, scores(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3)


def left_after(root, weight, gram, gone, width):
    """Loss of a unit without some groups, the rest re-fitted by Eqs. 6-7 directly: ½ tr(F ΔW (G + λI) ΔWᵀ)."""
    columns = torch.zeros(len(gram), dtype=torch.bool)
    for group in gone:
        columns[group * width : (group + 1) * width] = True
    fitted = torch.zeros_like(weight)
    fitted[:, ~columns] = torch.linalg.solve(gram[~columns][:, ~columns], gram[~columns] @ weight.T).T
    change = root @ (weight - fitted)
    return 0.5 * torch.trace(change @ gram @ change.T).item()


@pytest.mark.parametrize("width", [1, 3])
def test_the_surgeon_takes_what_can_be_restored_best(width):
    """Group after group, by trying all of them and solving the regression anew each time."""
    rng = torch.Generator().manual_seed(width)
    n = 8 * width
    mix = torch.randn(n, n, generator=rng, dtype=torch.float64)
    gram = mix @ mix.T / n + 0.05 * torch.eye(n)
    weight, root = (torch.randn(5, k, generator=rng, dtype=torch.float64) for k in (n, 5))
    order = eliminate(root @ weight, torch.linalg.inv(gram), width, rounds=100)
    gone: list[int] = []
    for group in order:
        rest = [g for g in range(8) if g not in gone]
        losses = {g: left_after(root, weight, gram, [*gone, g], width) for g in rest}
        assert min(losses, key=lambda g: losses[g]) == group
        gone.append(group)


def test_in_rounds_every_group_goes_once():
    gram = torch.eye(100) + 0.1
    order = eliminate(torch.randn(4, 100, generator=torch.Generator().manual_seed(0)), gram.inverse(), 1, rounds=7)
    assert sorted(order) == list(range(100))


def test_the_surgeon_leaves_less_error_than_wanda(windows):
    """What calibration cannot restore, in the metric of the loss, summed over all units and numbers of groups."""
    left = {}
    for name in ("wanda", "surgeon"):
        prunable = PrunableModel(tiny_model("llama", seed=1))
        stats = collect_statistics(prunable, windows)
        gradients = collect_gradients(prunable, windows)
        prunable.rank(CRITERIA[name].score(prunable, Evidence(stats, gradients, lambda s=stats: s.grams, 0.01)))
        ridge = ff.RidgeCalibration(prunable, stats, 0.01)
        products = [ridge.factors(i)[0] for i in range(len(prunable.units))]
        errors = [
            torch.einsum("cj,cd,dj->j", p, f, p).flip(0).cumsum(0).sum()
            for p, f in zip(products, gradients.outputs, strict=True)
        ]
        left[name] = float(sum(errors))
    assert left["surgeon"] < left["wanda"]


def test_a_unit_without_inverse_is_scored_all_the_same(windows):
    prunable = PrunableModel(tiny_model("llama"))
    stats, gradients = collect_statistics(prunable, windows), collect_gradients(prunable, windows)
    grams = [torch.zeros_like(gram) for gram in stats.grams]
    scores = surgeon_scores(prunable, grams, gradients.outputs, ridge=0.0)
    assert all(sorted(score) == list(range(unit.n_groups)) for score, unit in zip(scores, prunable.units, strict=True))


def test_the_surgeon_takes_an_absolute_ridge_as_the_calibration_does(windows):
    prunable = PrunableModel(tiny_model("llama"))
    stats, gradients = collect_statistics(prunable, windows), collect_gradients(prunable, windows)
    relative = surgeon_scores(prunable, stats.grams, gradients.outputs, 3.0)
    for i, gram in enumerate(stats.grams):
        lam = 3.0 * float(gram.double().diagonal().mean())
        absolute = surgeon_scores(prunable, stats.grams, gradients.outputs, lam, "absolute")
        np.testing.assert_array_equal(absolute[i], relative[i])
    least, little = (surgeon_scores(prunable, stats.grams, gradients.outputs, lam, "absolute") for lam in (0.0, 1e-9))
    assert all((one == other).all() for one, other in zip(least, little, strict=True))
    assert any((one != other).any() for one, other in zip(little, relative, strict=True))


def test_ranks_are_averaged(windows):
    averaged = average_ranks([np.array([1.0, 5.0, 3.0])], [np.array([10.0, 0.0, 20.0])])
    np.testing.assert_array_equal(averaged[0], [0.5, 1.0, 1.5])
    prunable = PrunableModel(tiny_model("opt"))
    stats, gradients = collect_statistics(prunable, windows), collect_gradients(prunable, windows, outputs=False)
    both = CRITERIA["wanda+taylor"].score(prunable, Evidence(stats, gradients, lambda: (), 0.01))
    expected = average_ranks(wanda_scores(prunable, stats), taylor_scores(gradients))
    assert all((one == other).all() for one, other in zip(both, expected, strict=True))
    with pytest.raises(ValueError, match="second moments of the gradients"):
        CRITERIA["surgeon"].score(prunable, Evidence(stats, gradients, lambda: stats.grams, 0.01))


@pytest.mark.parametrize("name", CRITERIA)
def test_an_evaluator_ranks_by_any_criterion(name, tokenizer, text_file):
    evaluator = build_evaluator(
        tiny_model("llama-gqa").float(),
        tokenizer,
        str(text_file),
        plain(seq_len=64, criterion=name, ridge=0.01, search_windows=8, calibration="ridge", fresh_windows=False),
    )
    assert evaluator.prunable.rankings == 1
    in_order = ff.load_windows(str(text_file), tokenizer, "search", 64, 8)
    assert torch.equal(evaluator.windows, in_order[[0, 4, 2, 6, 1, 5, 3, 7]])  # every prefix is spread over the text
