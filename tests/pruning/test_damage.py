"""Damage curves against per-token gradients, and the allocation that minimizes them against enumeration."""

from __future__ import annotations

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from conftest import tiny_model

from ffprune_env.budget.even import uniform
from ffprune_env.budget.least_damage import least_damage
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.lm.loss import window_losses
from ffprune_env.pruning import backward
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.head_groups import HeadGroups
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores


def ranked(family: str, windows: torch.Tensor, heads: HeadGroups = "single") -> tuple[PrunableModel, RidgeCalibration]:
    prunable = PrunableModel(tiny_model(family), heads=heads)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    return prunable, RidgeCalibration(prunable, stats)


@pytest.mark.parametrize(("calibrated", "heads"), [(False, "single"), (True, "balanced"), (True, "groups")])
def test_curves_are_half_the_second_moment_of_what_is_lost(family, windows, calibrated, heads):
    """The slow way: for every k, the change of the projection's output, token by token, times its gradient."""
    prunable, ridge = ranked(family, windows, heads)
    curves = damage_curves(prunable, windows, ridge if calibrated else None)
    outputs, inputs, hooks = [], [], []
    for layout in prunable.layouts:

        def keep(module, args, output):
            inputs.append(args[0].detach().flatten(0, -2))
            output.retain_grad()
            outputs.append(output)

        hooks.append(layout.output.register_forward_hook(keep))
    logits = prunable.model(windows).logits[:, :-1]
    targets = windows[:, 1:]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    for i, (unit, curve) in enumerate(zip(prunable.units, curves, strict=True)):
        layout, x, g = prunable.layouts[i], inputs[i], outputs[i].grad.flatten(0, -2)
        weight = layout.output.weight.detach()
        assert curve.shape == (unit.n_groups + 1,)
        assert curve[-1] == 0
        for k in {1, max(1, unit.n_groups // 2), max(1, unit.n_groups - 1)}:
            m = k * layout.width
            new = (ridge.weight(i, k) if calibrated else weight[:, :m]).double()
            change = x[:, :m] @ new.T - x @ weight.T  # [tokens, C]
            expected = 0.5 * (change * g).sum(1).square().mean().item()
            assert curve[k] == pytest.approx(expected, rel=2e-3, abs=1e-9)


@pytest.mark.parametrize("calibrated", [False, True])
def test_around_an_allocation_curves_are_the_change_of_its_loss(family, windows, calibrated):
    """The slow way: the pruned model's own gradients, and what its projections would give with more or fewer groups."""
    prunable, ridge = ranked(family, windows)
    kept = np.array([2, 10, 4, 24, 1, 17])
    curves = damage_curves(prunable, windows, ridge if calibrated else None, kept)
    inputs, outputs, hooks = [], [], []

    def project(i, k):
        layout = prunable.layouts[i]
        m = int(k) * layout.width
        new = ridge.weight(i, k) if calibrated else layout.output.weight.detach()[:, :m]
        bias = 0 if layout.output.bias is None else layout.output.bias.detach()
        return inputs[i][:, :m] @ new.double().T + bias

    def replaced(module, args, output):
        inputs.append(args[0].flatten(0, -2))
        outputs.append(project(len(outputs), kept[len(outputs)]))
        outputs[-1].retain_grad()
        return outputs[-1].view_as(output)

    hooks += [layout.output.register_forward_hook(replaced) for layout in prunable.layouts]
    logits = prunable.model(windows).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    for i, (unit, curve) in enumerate(zip(prunable.units, curves, strict=True)):
        g = outputs[i].grad
        assert curve[kept[i]] == 0
        for k in {1, unit.n_groups // 2, unit.n_groups}:
            change = ((project(i, k) - project(i, kept[i])) * g).sum(1)
            expected = (change.mean() + 0.5 * change.square().mean()).item()
            assert curve[k] == pytest.approx(expected, rel=5e-3, abs=1e-6)


def test_factors_that_are_kept_elsewhere_are_fetched_one_unit_at_a_time(windows, monkeypatch):
    """They are kept there because they do not all fit."""
    prunable, _ = ranked("llama", windows)
    ridge = RidgeCalibration(prunable, collect_statistics(prunable, windows), storage="cpu")
    kept = np.array([max(1, unit.n_groups * 3 // 4) for unit in prunable.units])
    expected = damage_curves(prunable, windows, ridge, kept)
    alive: list[weakref.ref] = []
    stored = RidgeCalibration.factors

    def fetched(self, i):
        pair = tuple(x.clone() for x in stored(self, i))
        alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(x) for x in pair]
        assert len(alive) <= 2
        return pair

    monkeypatch.setattr(RidgeCalibration, "factors", fetched)
    for got, wanted in zip(damage_curves(prunable, windows, ridge, kept), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_following_the_curves_lowers_the_loss(windows):
    """What they promise of small steps is what happens: on the text that they were made from, plain and calibrated."""
    prunable, ridge = ranked("llama", windows)
    for calibration in (None, ridge):
        kept = uniform(0.4, prunable.units).kept
        curves = damage_curves(prunable, windows, calibration, kept)
        near = (kept - 1, kept + 1)
        better = least_damage(curves, 0.4, prunable.units, within=near).kept
        assert np.abs(better - kept).max() <= 1
        losses = []
        for counts in (kept, better):
            with prunable.pruned(counts, calibration) as model:
                losses.append(window_losses(model, windows).mean().item())
        assert losses[1] < losses[0]


def test_the_model_is_left_as_it_was(windows):
    prunable, ridge = ranked("llama-gqa", windows)
    before = window_losses(prunable.model, windows)
    damage_curves(prunable, windows, ridge)
    assert torch.equal(before, window_losses(prunable.model, windows))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in prunable.model.parameters())
    assert not any(layout.output._forward_hooks for layout in prunable.layouts)


def test_what_curves_refuse(windows):
    prunable = PrunableModel(tiny_model("llama"))
    with pytest.raises(RuntimeError, match="no order yet"):
        damage_curves(prunable, windows)
    prunable.rank([np.zeros(unit.n_groups) for unit in prunable.units])
    with pytest.raises(ValueError, match="windows must be"):
        damage_curves(prunable, windows[:0])
    with prunable.pruned([1] * 6), pytest.raises(RuntimeError, match="is pruned"):
        damage_curves(prunable, windows)
    prunable.model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="gradients are not finite"):
        damage_curves(prunable, windows)


def test_bfloat16_gives_nearly_the_same(windows):
    exact, rough = ranked("llama-gqa", windows)[0], ranked("llama-gqa", windows)[0]
    rough.model.bfloat16()
    for one, other in zip(damage_curves(exact, windows), damage_curves(rough, windows), strict=True):
        np.testing.assert_allclose(other, one, rtol=0.25, atol=1e-3)


def test_an_interruption_leaves_the_model_as_it_was(windows, monkeypatch):
    prunable, ridge = ranked("llama-gqa", windows)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(backward, "token_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        damage_curves(prunable, windows, ridge)
    assert all(parameter.requires_grad for parameter in prunable.model.parameters())
    assert not any(layout.output._forward_hooks for layout in prunable.layouts)


def test_gradients_are_switched_on_where_they_are_off(windows):
    prunable, _ = ranked("opt", windows)
    expected = damage_curves(prunable, windows)
    with torch.no_grad():
        for one, other in zip(expected, damage_curves(prunable, windows), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("power", [0.3, 1, 2])
def test_the_least_damage_is_found(power):
    """By counting all there is, with groups of different sizes, on curves that are convex or not."""
    units = tuple(
        PruneUnit(f"unit {i}", "ffn", i, n, n * size) for i, (n, size) in enumerate(((4, 30), (8, 10), (9, 7)))
    )
    size = np.array([unit.group_params for unit in units])
    total = sum(unit.n_params for unit in units)
    rng = np.random.default_rng(0)
    for sparsity in (0.1, 0.3, 0.5, 0.7):
        curves = [rng.exponential() * (1 - np.arange(unit.n_groups + 1) / unit.n_groups) ** power for unit in units]
        found = least_damage(curves, sparsity, units, a_min=0.1)
        assert found.sparsity >= sparsity
        best = min(
            sum(curve[k] for curve, k in zip(curves, kept, strict=True))
            for kept in itertools.product(*(range(1, unit.n_groups + 1) for unit in units))
            if (total - kept @ size) / total >= sparsity
        )
        assert sum(curve[k] for curve, k in zip(curves, found.kept, strict=True)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_not_dearer_than_they_are(seed):
    """Heads and blocks of channels of smollm2-135m, which 4000 parts of Σw do not divide: next to a lower bound."""
    sizes = [(9, 73_728), (48, 55_296)] * 30
    units = tuple(PruneUnit(f"unit {i}", "ffn", i, n, n * size) for i, (n, size) in enumerate(sizes))
    rng = np.random.default_rng(seed)
    curves = [np.append(np.cumsum(np.sort(rng.random(n)) * size)[::-1], 0) for n, size in sizes]
    found = least_damage(curves, 0.2, units, a_min=0.1)
    budget = 0.8 * sum(unit.n_params for unit in units)

    def relaxed(price):
        cheapest = [
            (curve + price * size * np.arange(n + 1))[-(-n // 10) :].min()
            for curve, (n, size) in zip(curves, sizes, strict=True)
        ]
        return sum(cheapest) - price * budget

    bound = max(relaxed(price) for price in np.linspace(0, 1, 1001))
    assert bound <= sum(curve[k] for curve, k in zip(curves, found.kept, strict=True)) < 1.001 * bound


def test_the_budget_is_used_to_less_than_a_group():
    model = SurrogateEvaluator.synthetic(n_layers=6, seed=3)
    cheapest = min(unit.group_params for unit in model.units) / sum(unit.n_params for unit in model.units)
    for sparsity in (0.05, 0.3, 0.6, 0.78):
        assert sparsity <= least_damage(model.curves, sparsity, model.units).sparsity < sparsity + cheapest
    with pytest.raises(ValueError, match=r"sparsity 0\.9 is out of range"):
        least_damage(model.curves, 0.9, model.units)


def test_it_beats_uniform_on_curves_and_meets_the_budget():
    model = SurrogateEvaluator.synthetic(n_layers=6, seed=3)
    for sparsity in (0.05, 0.3, 0.6):
        found = least_damage(model.curves, sparsity, model.units)
        assert found.sparsity >= sparsity
        assert model.compare(found.kept, 1)[1] < 0.9 * model.compare(uniform(sparsity, model.units).kept, 1)[1]


@pytest.mark.parametrize("collect", [damage_curves, collect_gradients])
def test_nothing_of_a_backward_pass_stays_in_memory(collect, windows):
    """What a hook holds of the tensor that it hangs on is never freed, and with it the graph of the whole window."""
    prunable, _ = ranked("llama-gqa", windows)
    seen = []

    def note(module, inputs, output):
        seen.append(weakref.ref(output[0] if isinstance(output, tuple) else output))

    ends = [layout.block.end for layout in prunable.layouts]
    hooks = [module.register_forward_hook(note) for module in ends]
    collect(prunable, windows)
    for hook in hooks:
        hook.remove()
    gc.collect()
    assert len(seen) >= len(windows) * len(ends)
    assert not [x for x in seen if x() is not None]
