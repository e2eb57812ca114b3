"""Pruning by views: what it computes, what it leaves behind, and what it costs."""

from __future__ import annotations

import copy
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import tiny_model
from torch.profiler import ProfilerActivity, profile

from ffprune_env.pruning import group_order
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.head_groups import HeadGroups
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics
from ffprune_env.pruning.unit_layout import member_columns
from ffprune_env.pruning.units import find_units


def random_scores(prunable, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random(layout.n_members) for layout in prunable.layouts]


def random_kept(prunable, seed):
    rng = np.random.default_rng(seed)
    return np.array([rng.integers(1, unit.n_groups + 1) for unit in prunable.units])


def masked(model, members, heads="single"):
    """The slow, obvious way: a dense copy whose output projections ignore the heads and channels that go."""
    reference = copy.deepcopy(model)
    for layout, kept in zip(find_units(reference, heads=heads), members, strict=True):
        gone = np.setdiff1d(np.arange(layout.n_members), kept)
        columns = member_columns(layout, torch.from_numpy(gone))
        layout.output.weight.data[:, columns] = 0
    return reference


def logits(model, windows, **kwargs):
    with torch.no_grad():
        return model(windows, use_cache=False, **kwargs).logits


@pytest.mark.parametrize("channels_per_group", [1, 2])
@pytest.mark.parametrize("heads", get_args(HeadGroups))
def test_views_compute_what_a_masked_copy_computes(family, windows, heads, channels_per_group):
    model = tiny_model(family, channels=24 if channels_per_group == 1 else 64)
    dense = copy.deepcopy(model)
    prunable = PrunableModel(model, channels_per_group, heads)
    assert prunable.layouts[1].width == channels_per_group
    for seed in range(1, 3):
        prunable.rank(random_scores(prunable, seed))
        kept = random_kept(prunable, seed)
        expected = logits(masked(dense, prunable.kept_groups(kept), heads), windows)
        with prunable.pruned(kept) as pruned:
            assert (logits(pruned, windows) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("heads", get_args(HeadGroups))
def test_ranking_changes_nothing_that_is_computed(family, windows, heads):
    model = tiny_model(family)
    before = logits(model, windows)
    prunable = PrunableModel(model, heads=heads)
    for seed in range(2):
        prunable.rank(random_scores(prunable, seed))
        assert (logits(model, windows) - before).abs().max() < 1e-9


def test_ranking_twice_is_ranking_by_the_second_scores(family, windows):
    once, twice = (PrunableModel(tiny_model(family)) for _ in range(2))
    twice.rank(random_scores(twice, 7))
    for prunable in (once, twice):
        prunable.rank(random_scores(prunable, 3))
    for one, other in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        assert torch.equal(one, other)
    kept = random_kept(once, 3)
    for one, other in zip(once.kept_groups(kept), twice.kept_groups(kept), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_order_for_a_while_leaves_no_trace(family, windows):
    prunable = PrunableModel(tiny_model(family))
    with pytest.raises(RuntimeError, match="call rank"), prunable.ranked(random_scores(prunable)):
        pass
    prunable.rank(random_scores(prunable, 1))
    calibration = RidgeCalibration(prunable, collect_statistics(prunable, windows))
    kept, order = random_kept(prunable, 2), [x.clone() for x in prunable.order]
    weights = {name: p.clone() for name, p in prunable.model.named_parameters()}
    with prunable.pruned(kept, calibration) as pruned:
        before = logits(pruned, windows)
    with prunable.ranked(random_scores(prunable, 3)):
        for score, k, groups in zip(random_scores(prunable, 3), kept, prunable.kept_groups(kept), strict=True):
            np.testing.assert_array_equal(groups, np.sort(np.argsort(-score)[:k]))
        with pytest.raises(RuntimeError, match="make another"), prunable.pruned(kept, calibration):
            pass
        inside = RidgeCalibration(prunable, collect_statistics(prunable, windows))
    assert all(torch.equal(one, other) for one, other in zip(prunable.order, order, strict=True))
    assert all(torch.equal(p, weights[name]) for name, p in prunable.model.named_parameters())
    with prunable.pruned(kept, calibration) as pruned:
        assert torch.equal(logits(pruned, windows), before)
    prunable.rank(random_scores(prunable, 4))  # not to be taken for the ranking inside
    for void in (calibration, inside):
        with pytest.raises(RuntimeError, match="make another"), prunable.pruned(kept, void):
            pass


def test_the_best_scored_groups_stay(family):
    prunable = PrunableModel(tiny_model(family))
    scores = random_scores(prunable)
    prunable.rank(scores)
    kept = random_kept(prunable, 5)
    for score, k, groups in zip(scores, kept, prunable.kept_groups(kept), strict=True):
        np.testing.assert_array_equal(groups, np.sort(np.argsort(-score)[:k]))


def test_dense_again_bit_for_bit(family, windows):
    prunable = PrunableModel(tiny_model(family))
    prunable.rank(random_scores(prunable))
    weights = {name: p.clone() for name, p in prunable.model.named_parameters()}
    text = repr(prunable.model)
    before = logits(prunable.model, windows)
    for seed in range(3):
        with prunable.pruned(random_kept(prunable, seed)):
            pass
    with pytest.raises(KeyError), prunable.pruned(random_kept(prunable, 9)):
        raise KeyError("in the middle")
    assert torch.equal(logits(prunable.model, windows), before)
    assert repr(prunable.model) == text
    for name, parameter in prunable.model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_entering_and_leaving_allocates_no_storage(family):
    prunable = PrunableModel(tiny_model(family))
    prunable.rank(random_scores(prunable))
    kept = random_kept(prunable, 1)
    storages = {p.untyped_storage().data_ptr() for p in prunable.model.parameters()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        context = prunable.pruned(kept)
        context.__enter__()
        inside = {p.untyped_storage().data_ptr() for p in prunable.model.parameters()}
        context.__exit__(None, None, None)
    assert inside == storages
    assert sum(max(0, event.self_cpu_memory_usage) for event in profiler.events()) == 0


@pytest.mark.parametrize("heads", get_args(HeadGroups))
def test_the_matrices_are_really_smaller(family, heads):
    prunable = PrunableModel(tiny_model(family), heads=heads)
    prunable.rank(random_scores(prunable))
    kept = random_kept(prunable, 2)
    before = sum(p.numel() for p in prunable.model.parameters())
    unread = 0  # keys and values that stay in memory and are not written
    for layout, heads_left in zip(prunable.layouts, prunable.kept_groups(kept), strict=True):
        if layout.key_heads is not None:
            gone = set(layout.key_heads.tolist()) - set(layout.key_heads[heads_left].tolist())
            for name in ("k_proj", "v_proj"):
                linear = getattr(layout.owner, name)
                unread += len(gone) * layout.head_dim * (linear.in_features + (linear.bias is not None))
    with prunable.pruned(kept) as model:
        assert sum(p.numel() for p in model.parameters()) == prunable.params(kept) + unread
    assert unread == 0 or heads == "single"
    assert before - prunable.params(kept) == round(prunable.total_sparsity(kept) * before)
    assert prunable.sparsity(kept) > prunable.total_sparsity(kept)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_and_masks_still_work(family, windows, padding):
    model = tiny_model(family)
    dense = copy.deepcopy(model)
    prunable = PrunableModel(model)
    prunable.rank(random_scores(prunable))
    kept = random_kept(prunable, 0)
    mask = torch.ones_like(windows)
    mask[0, slice(0, 5) if padding == "left" else slice(-5, None)] = 0
    expected = logits(masked(dense, prunable.kept_groups(kept)), windows, attention_mask=mask)
    with prunable.pruned(kept) as pruned:
        result = logits(pruned, windows, attention_mask=mask)
    # Stock Gemma 2 gives NaN in rows that see nothing but padding; what counts is that pruning changes nothing.
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9, equal_nan=True)


def test_generation_with_the_cache_is_that_of_the_masked_copy(family, windows):
    model = tiny_model(family)
    dense = copy.deepcopy(model)
    prunable = PrunableModel(model)
    prunable.rank(random_scores(prunable))
    kept = random_kept(prunable, 4)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = masked(dense, prunable.kept_groups(kept)).generate(windows, **settings)
    with prunable.pruned(kept) as pruned:
        assert torch.equal(pruned.generate(windows, **settings), expected)


def test_dense_again_in_bfloat16_too(family, windows):
    prunable = PrunableModel(tiny_model(family).bfloat16())
    prunable.rank(random_scores(prunable))
    before = logits(prunable.model, windows)
    with prunable.pruned(random_kept(prunable, 0)) as pruned:
        assert torch.isfinite(logits(pruned, windows)).all()
    assert torch.equal(logits(prunable.model, windows), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_computes_what_the_cpu_computes(family, windows):
    kept, results = None, []
    for device in ("cpu", "cuda"):
        prunable = PrunableModel(tiny_model(family).to(device))
        prunable.rank(random_scores(prunable))
        kept = random_kept(prunable, 0)
        with prunable.pruned(kept) as pruned:
            results.append(logits(pruned, windows.to(device)).cpu())
    assert (results[0] - results[1]).abs().max() < 1e-9


def test_a_second_wrapper_is_refused():
    model = tiny_model("llama-gqa")
    PrunableModel(model)
    with pytest.raises(ValueError, match="wrapped by a PrunableModel already"):
        PrunableModel(model)


def test_misuse_is_refused_and_changes_nothing():
    prunable = PrunableModel(tiny_model("llama"))
    kept = random_kept(prunable, 0)
    with pytest.raises(RuntimeError, match="call rank"), prunable.pruned(kept):
        pass
    scores = random_scores(prunable)
    with pytest.raises(ValueError, match="scores for 5 units"):
        prunable.rank(scores[:-1])
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(4,\)"):
        prunable.rank([scores[0][:-1], *scores[1:]])
    with pytest.raises(ValueError, match="1 of its scores are not finite"):
        prunable.rank([np.array([1, 2, np.nan, 3]), *scores[1:]])
    prunable.rank(scores)
    with pytest.raises(ValueError, match="-1 groups kept, allowed are 0 to 4"):
        prunable.check_kept([-1, *kept[1:]])
    with pytest.raises(ValueError, match="6 integers, one per unit"):
        prunable.check_kept(kept / 2)
    with prunable.pruned(kept):
        with pytest.raises(RuntimeError, match="cannot prune a model that is pruned"), prunable.pruned(kept):
            pass
        with pytest.raises(RuntimeError, match="cannot rank"):
            prunable.rank(scores)


def test_flash_attention_is_refused_where_keys_are_shared(monkeypatch):
    model = tiny_model("llama-gqa")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"attention 'flash_attention_2' cannot read keys by index.*eager, sdpa"):
        PrunableModel(model)
    model.config._attn_implementation_internal = "sdpa"
    PrunableModel(model)


def test_an_order_is_taken_over_as_it_is(family, windows):
    """Two models of the same weights, one ranked by scores and one by the order that came of it, prune alike."""
    by_scores, by_order = (PrunableModel(tiny_model(family)) for _ in range(2))
    rng = np.random.default_rng(0)
    by_order.rank([rng.permutation(layout.n_members) for layout in by_order.layouts])  # whatever it was before
    by_scores.rank([rng.permutation(layout.n_members) for layout in by_scores.layouts])
    by_order.rank_as([members.numpy() for members in by_scores.order])
    for one, other in zip(by_scores.order, by_order.order, strict=True):
        assert torch.equal(one, other)
    kept = [max(1, unit.n_groups // 2) for unit in by_scores.units]
    with by_scores.pruned(kept) as one, by_order.pruned(kept) as other:
        assert torch.equal(one(windows).logits, other(windows).logits)


@pytest.mark.parametrize("wrong", [[0, 0], [0, 1], "fewer units"])
def test_what_is_no_order_is_refused(wrong):
    prunable = PrunableModel(tiny_model("llama"))
    order = [members.numpy() for members in prunable.order]
    asked = order[:-1] if wrong == "fewer units" else [np.array(wrong), *order[1:]]
    with pytest.raises(
        ValueError, match=r"an order holds each of 0 to 3 once|for 5 units, expected one array for each"
    ):
        prunable.rank_as(asked)
    assert all(np.array_equal(x, y.numpy()) for x, y in zip(order, prunable.order, strict=True))


def test_a_model_whose_ranking_was_interrupted_is_used_no_more(monkeypatch):
    """Some of its matrices are in another order than the others."""
    prunable = PrunableModel(tiny_model("llama"))
    scores = [np.arange(layout.n_members) for layout in prunable.layouts]
    prunable.rank(scores)
    real, calls = group_order.permute, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(group_order, "permute", interrupted)
    with pytest.raises(KeyboardInterrupt), prunable.ranked([-score for score in scores]):
        pass
    monkeypatch.undo()
    kept = [unit.n_groups for unit in prunable.units]
    with pytest.raises(RuntimeError, match="cannot prune a model whose ranking was interrupted: load it again"):
        prunable.pruned(kept).__enter__()
    with pytest.raises(RuntimeError, match="cannot rank a model whose ranking was interrupted"):
        prunable.rank(scores)
