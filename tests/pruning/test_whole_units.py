"""Units that go with all of their groups: the layer runs as if they gave 0, whatever the family."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import FAMILIES, MORE_FAMILIES, tiny_model
from torch import nn

from ffprune_env.export import trial
from ffprune_env.lm.loss import window_losses
from ffprune_env.modeling.absent import NoAttention, norms_of
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.drops import drop_losses, with_drops
from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.leaving_out import why_none_can_go
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.pruning.unit_layout import member_columns
from ffprune_env.pruning.units import find_units

ALL = tuple(FAMILIES | MORE_FAMILIES)
# With norms behind the parts, or with both parts beside each other, layers are not h + attention, then h + FFN.
# Of what is left of Phi-3 here too little can make up for anything.
NOT_FITTED = ("gemma2", "gemma3", "cohere", "cohere2", "olmo2", "granite", "phi3")
RESIDUAL = [family for family in ALL if family not in NOT_FITTED]


def ranked(family, dtype=torch.float64):
    prunable = PrunableModel(tiny_model(family).to(dtype))
    rng = np.random.default_rng(0)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    return prunable


def some_gone(prunable, seed=0):
    """The attention of layer 0 and 2 and the FFN of layer 1 and 2, as far as they are units; some groups of others."""
    rng = np.random.default_rng(seed)
    gone = {("attention", 0), ("ffn", 1), ("attention", 2), ("ffn", 2)}
    return np.array(
        [0 if (u.kind, u.layer) in gone else rng.integers(1, u.n_groups + 1) for u in prunable.units], dtype=np.int64
    )


def silenced(model, prunable, kept):
    """The slow, obvious way: a dense copy whose output projections ignore what goes, and give 0 if all of it does."""
    reference = copy.deepcopy(model)
    layouts = {layout.unit.name: layout for layout in find_units(reference)}
    for unit, members, k in zip(prunable.units, prunable.kept_groups(kept), kept, strict=True):
        layout = layouts[unit.name]
        gone = torch.from_numpy(np.setdiff1d(np.arange(layout.n_members), members))
        layout.output.weight.data[:, member_columns(layout, gone)] = 0
        if not k and layout.output.bias is not None:
            layout.output.bias.data.zero_()
    return reference


def logits(model, windows):
    with torch.no_grad():
        return model(windows, use_cache=False).logits


@pytest.mark.parametrize("family", ALL)
def test_a_unit_that_is_gone_gives_nothing_and_comes_back_bit_for_bit(family, windows):
    model = tiny_model(family)
    dense = copy.deepcopy(model)
    prunable = PrunableModel(model)
    prunable.rank([np.arange(layout.n_members) % 3 for layout in prunable.layouts])
    before, text = {name: p.clone() for name, p in model.named_parameters()}, repr(model)
    one_by_one = [
        np.array([0 if i == gone else unit.n_groups for i, unit in enumerate(prunable.units)])
        for gone in range(len(prunable.units))
    ]
    for kept in (some_gone(prunable), np.zeros(len(prunable.units), dtype=np.int64), *one_by_one):
        expected = logits(silenced(dense, prunable, kept), windows)
        with prunable.pruned(kept) as pruned:
            assert (logits(pruned, windows) - expected).abs().max() < 1e-9
            assert sum(p.numel() for p in pruned.parameters()) <= prunable.n_params - sum(
                unit.n_params + unit.rest_params for unit, k in zip(prunable.units, kept, strict=True) if not k
            )
    assert repr(model) == text
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_nothing_of_a_unit_that_is_gone_is_computed(family, windows):
    prunable = ranked(family)
    kept = prunable.check_kept(some_gone(prunable))  # the first time it tries whether they can go
    ran = []
    for layout in prunable.layouts:
        for path in layout.block.gone:
            layout.block.layer.get_submodule(path).register_forward_hook(
                lambda *_, name=layout.unit.name, path=path: ran.append((name, path))
            )
    with prunable.pruned(kept) as pruned:
        logits(pruned, windows)
    expected = {(x.unit.name, path) for x, k in zip(prunable.layouts, kept, strict=True) for path in x.block.gone if k}
    assert set(ran) == expected


@pytest.mark.parametrize("family", ALL)
def test_text_is_generated_with_and_without_a_cache(family):
    # In float64 the eager attention of transformers gives no numbers where a prompt is padded.
    prunable = ranked(family, torch.float32)
    kept = some_gone(prunable)
    reference = silenced(tiny_model(family).float(), prunable, kept)
    with prunable.pruned(kept) as pruned:
        trial.require_same_text(pruned, reference)
        cache = pruned(torch.arange(5, 12)[None], use_cache=True).past_key_values
    if kept[0] == 0 and prunable.units[0].kind == "attention":
        assert cache.get_seq_length() == 7
        assert cache.layers[0].keys.numel() == 7  # a mark for each token, no keys


def test_without_any_attention_text_is_generated_all_the_same():
    prunable = ranked("gemma3", torch.float32)
    kept = np.array([0 if unit.kind == "attention" else unit.n_groups for unit in prunable.units])
    with prunable.pruned(kept) as pruned:
        trial.require_same_text(pruned, silenced(tiny_model("gemma3").float(), prunable, kept))


def test_norms_of_their_own_go_with_a_unit_and_shared_ones_stay():
    def names(family, kind):
        return norms_of(tiny_model(family).get_decoder().layers[0], kind)

    assert names("llama", "attention") == (["input_layernorm"], [])
    assert names("llama", "ffn") == (["post_attention_layernorm"], [])
    assert names("gemma2", "attention") == (["input_layernorm"], ["post_attention_layernorm"])
    assert names("gemma2", "ffn") == (["pre_feedforward_layernorm"], ["post_feedforward_layernorm"])
    assert names("olmo2", "attention") == ([], ["post_attention_layernorm"])
    assert names("olmo2", "ffn") == ([], ["post_feedforward_layernorm"])
    assert names("cohere", "attention") == names("cohere", "ffn") == ([], [])
    assert names("opt", "attention") == (["self_attn_layer_norm"], [])
    assert names("opt", "ffn") == (["final_layer_norm"], [])
    behind_the_sum = tiny_model("opt").get_decoder().layers[0]
    behind_the_sum.do_layer_norm_before = False
    assert norms_of(behind_the_sum, "ffn") == ([], [])


def test_the_rest_of_a_unit_is_counted_when_its_last_group_goes():
    prunable = ranked("llama-gqa")  # 4 query heads of 8 on 2 key/value heads, hidden states of 32, 24 channels
    attention, ffn = prunable.units[:2]
    assert attention.rest_params == 2 * (16 * 32 + 16) + 32 + 32  # keys, values, output bias, norm
    assert ffn.rest_params == 32 + 32
    kept = [0, 24, 3, 24, 4, 0]
    removed = attention.n_params + attention.rest_params + attention.group_params + ffn.n_params + ffn.rest_params
    assert prunable.params(kept) == prunable.n_params - removed
    assert prunable.sparsity(kept) == removed / sum(unit.n_params for unit in prunable.units)
    assert prunable.total_sparsity(kept) == pytest.approx(removed / prunable.n_params)
    assert [len(members) for members in prunable.kept_groups(kept)] == kept


def test_a_layer_that_cannot_do_without_a_part_keeps_a_group_of_it(windows):
    class Shifted(nn.LayerNorm):
        """A norm behind a part that makes something of nothing."""

    model = tiny_model("gemma2")
    for layer in model.model.layers:
        layer.post_attention_layernorm = Shifted(32).double()
        nn.init.normal_(layer.post_attention_layernorm.bias)
    prunable = PrunableModel(model)
    prunable.rank([np.arange(layout.n_members) for layout in prunable.layouts])
    before = logits(model, windows)
    with pytest.raises(ValueError, match=r"cannot lose a whole attention: .*; keep 1 group") as caught:
        prunable.check_kept([0, 24] + [4, 24] * 2)
    assert "\n" not in str(caught.value)
    assert "hidden states are off by" in why_none_can_go(prunable, "attention")
    with prunable.pruned([4, 0] + [1, 24] * 2):
        pass
    assert torch.equal(logits(model, windows), before)


@pytest.mark.parametrize("family", RESIDUAL)
def test_calibration_in_sequence_makes_up_for_a_unit_that_is_gone(family, windows):
    prunable = ranked(family)
    text = torch.randint(1, 256, (24, 24), generator=torch.Generator().manual_seed(2))
    first = RidgeCalibration(prunable, collect_statistics(prunable, text))
    dense = logits(prunable.model, text)
    for kept in (some_gone(prunable), [0 if u.kind != "ffn" or u.layer == 1 else u.n_groups for u in prunable.units]):
        fitted = SequentialCalibration(first, kept, text, prior_tokens=1e-3)
        errors = []
        for calibration in (None, first, fitted):
            with prunable.pruned(kept, calibration) as pruned:
                errors.append(float((logits(pruned, text) - dense).square().mean()))
        assert np.isfinite(errors).all()
        assert errors[2] < errors[1]


@pytest.mark.parametrize("family", ALL)
def test_every_calibration_takes_a_unit_that_is_gone(family, windows):
    prunable = ranked(family)
    stats = collect_statistics(prunable, windows)
    kept = np.array([0 if unit.layer == 1 else unit.n_groups for unit in prunable.units])
    with prunable.pruned(kept) as pruned:
        expected = logits(pruned, windows)
    for calibration in (RidgeCalibration(prunable, stats), FlapBias(prunable, stats)):
        with prunable.pruned(kept, calibration) as pruned:
            # Biases that are made are sums in float32.
            torch.testing.assert_close(logits(pruned, windows), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama-gqa", "opt", "gemma2", "olmo2", "granite"])
def test_the_last_point_of_a_curve_is_what_the_whole_unit_carries(family, windows):
    """Against the gradient of the loss with respect to a factor of the unit, token by token."""
    prunable = ranked(family)
    calibration = RidgeCalibration(prunable, collect_statistics(prunable, windows))
    curves = damage_curves(prunable, windows)
    for curve, other in zip(curves, damage_curves(prunable, windows, calibration), strict=True):
        assert curve[0] == pytest.approx(other[0], rel=1e-4)
    for i, layout in enumerate(prunable.layouts):
        total = 0.0
        for window in windows:
            factor = torch.ones(len(window), 1, requires_grad=True, dtype=torch.float64)

            def scale(module, args, output, factor=factor):
                if isinstance(output, tuple):
                    return (output[0] * factor, *output[1:])
                return output * factor

            hook = layout.block.end.register_forward_hook(scale)
            out = prunable.model(window[None], use_cache=False).logits[0, :-1]
            hook.remove()
            loss = nn.functional.cross_entropy(out, window[1:], reduction="sum")
            total += float(torch.autograd.grad(loss, factor)[0].square().sum())
        assert curves[i][0] == pytest.approx(total / 2 / windows.numel(), rel=1e-4)


@pytest.mark.parametrize("family", ["llama-gqa", "opt", "gemma2", "cohere"])
def test_leaving_units_out_is_measured_one_after_the_other(family, windows):
    prunable = ranked(family)
    losses = window_losses(prunable.model, windows).double()
    drops = drop_losses(prunable, windows)
    for i in range(len(prunable.units)):
        kept = np.array([0 if i == j else unit.n_groups for j, unit in enumerate(prunable.units)])
        with prunable.pruned(kept) as pruned:
            change = float((window_losses(pruned, windows).double() - losses).mean())
        assert drops[i] == pytest.approx(change, abs=1e-6)
    assert torch.equal(window_losses(prunable.model, windows).double(), losses)


def test_curves_end_where_whole_units_were_measured():
    curves = [np.array([3.0, 2.0, 1.0, 0.0]), np.array([0.5, 0.2, 0.0]), np.array([1.0, 0.5, 0.0])]
    fitted = with_drops(curves, np.array([1.5, 4.0, -0.1]))
    np.testing.assert_array_equal(fitted[0], [1.5, 1.5, 1.0, 0.0])
    np.testing.assert_array_equal(fitted[1], [4.0, 0.2, 0.0])
    np.testing.assert_array_equal(fitted[2], [0, 0, 0])
    np.testing.assert_array_equal(curves[1], [0.5, 0.2, 0.0])


@pytest.mark.parametrize("family", ["llama-gqa", "gemma2"])
def test_around_a_unit_that_is_gone_curves_are_finite_and_0_where_it_is(family, windows):
    prunable = ranked(family)
    kept = some_gone(prunable)
    for curve, k in zip(damage_curves(prunable, windows, kept=kept), kept, strict=True):
        assert np.isfinite(curve).all()
        assert curve[k] == 0
    assert family != "gemma2" or not damage_curves(prunable, windows, kept=kept)[0].any()  # a norm has no slope at 0


def test_the_cache_is_marked_by_the_first_layer_of_each_kind_alone():
    prunable = ranked("gemma3")  # five layers with a window to one without
    with prunable.pruned(np.array([0, 24] * 3)) as pruned:
        layers = [layer.self_attn for layer in pruned.get_decoder().layers]
        assert all(isinstance(layer, NoAttention) for layer in layers)
        assert [layer.marks for layer in layers] == [True, False, False]
