"""Ridge calibration against the direct solution of Eq. 6, and what it must do where there is little to go by."""

from __future__ import annotations

import logging
import weakref

import numpy as np
import pytest
import torch
from conftest import tiny_model
from plain import plain, plainly

import ffprune_env as ff
from ffprune_env.evaluators import fitting
from ffprune_env.evaluators.build import build_evaluator, load_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, drain, stream_grams, wanda_scores
from ffprune_env.pruning.unit_layout import member_columns


def ranked(family="llama-gqa", windows=None, seed=0, heads="single"):
    """A model ranked by Wanda, its statistics, and windows to measure on."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(1, 256, (8, 48), generator=generator) if windows is None else windows
    prunable = PrunableModel(tiny_model(family, seed), heads=heads)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    return prunable, stats, windows


def direct(prunable, stats, i, k, ridge):
    """Eqs. 6-7 as the paper prints them, in float64."""
    layout = prunable.layouts[i]
    columns = member_columns(layout, prunable.order[i])
    gram = stats.grams[i][columns][:, columns].double()
    weight = layout.output.weight.detach().double()
    m, lam = k * layout.width, ridge * gram.diagonal().mean()
    solved = torch.linalg.solve(gram[:m, :m] + lam * torch.eye(m, dtype=torch.float64), gram[:m, m:])  # S, [R, P]
    return weight[:, :m] + weight[:, m:] @ solved.T


def largest_difference(prunable, stats, calibration, pairs, ridge):
    """Largest difference of a weight to the direct solution, as a fraction of the largest weight."""
    worst = 0.0
    for i, k in pairs:
        expected = direct(prunable, stats, i, k, ridge)
        got = calibration.weight(i, k).double()
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_factors_hold_whatever_the_number_of_tokens(dtype):
    """L grows with its root: of many tokens with large activations W L is too large for float16, and L⁻¹ too small."""
    prunable, stats, _ = ranked("llama")
    prunable.model.to(dtype)
    many = [gram * 1e10 for gram in stats.grams]
    calibration = RidgeCalibration(prunable, many)
    assert max(float(calibration.factors(i)[0].abs().max()) for i in range(len(prunable.units))) > 65504
    fast = calibration.approximate()
    for i, unit in enumerate(prunable.units):
        exact, short = (x.weight(i, unit.n_groups // 2).double() for x in (calibration, fast))
        assert float((short - exact).norm()) < 0.02 * float(exact.norm())


@pytest.mark.parametrize("ridge", [0.01, 1.0])
@pytest.mark.parametrize(("storage", "heads"), [("device", "single"), ("cpu", "balanced"), ("device", "groups")])
def test_every_kept_count_is_the_direct_solution(family, ridge, storage, heads):
    prunable, stats, _ = ranked(family, heads=heads)
    calibration = RidgeCalibration(prunable, stats, ridge, storage)
    assert (calibration.ridge == ridge).all()
    pairs = [(i, k) for i, unit in enumerate(prunable.units) for k in range(1, unit.n_groups + 1)]
    assert largest_difference(prunable, stats, calibration, pairs, ridge) < 1e-5


@pytest.mark.parametrize("lam", [0.01, 30.0])
def test_an_absolute_ridge_is_added_to_the_sum_over_tokens_as_it_stands(family, lam):
    """Against a dense solution of Eq. 6 with λ itself on the diagonal of XᵀX."""
    prunable, stats, _ = ranked(family)
    calibration = RidgeCalibration(prunable, stats, lam, scale="absolute")
    assert (calibration.ridge == lam).all()
    for i, unit in enumerate(prunable.units):
        layout = prunable.layouts[i]
        columns = member_columns(layout, prunable.order[i])
        gram, weight = stats.grams[i][columns][:, columns].double(), layout.output.weight.detach().double()
        for k in range(1, unit.n_groups + 1):
            m = k * layout.width
            kept = gram[:m, :m] + lam * torch.eye(m, dtype=torch.float64)
            expected = weight[:, :m] + weight[:, m:] @ torch.linalg.solve(kept, gram[:m, m:]).T
            difference = (calibration.weight(i, k).double() - expected).abs().max()
            assert float(difference) < 1e-4 * float(expected.abs().max())


def test_an_absolute_ridge_is_the_relative_one_times_the_mean_diagonal(family):
    prunable, stats, _ = ranked(family)
    relative, other = (RidgeCalibration(prunable, stats, 1.0, scale=scale) for scale in ("relative", "absolute"))
    for i, unit in enumerate(prunable.units):
        lam = float(stats.grams[i].double().diagonal().mean())
        absolute = RidgeCalibration(prunable, stats, lam, scale="absolute")
        for k in range(1, unit.n_groups + 1):
            torch.testing.assert_close(absolute.weight(i, k), relative.weight(i, k), rtol=1e-6, atol=1e-7)
        assert not torch.allclose(other.weight(i, 1), relative.weight(i, 1), rtol=1e-3)


def test_twice_the_tokens_are_half_an_absolute_ridge_and_the_same_relative_one():
    prunable, stats, _ = ranked("llama")
    twice, k = [2 * gram for gram in stats.grams], 3
    once, doubled = (RidgeCalibration(prunable, x, 2 * n, scale="absolute") for x, n in ((stats, 1), (twice, 2)))
    torch.testing.assert_close(doubled.weight(1, k), once.weight(1, k), rtol=1e-6, atol=1e-7)
    once, doubled = (RidgeCalibration(prunable, x, 0.01) for x in (stats, twice))
    torch.testing.assert_close(doubled.weight(1, k), once.weight(1, k), rtol=1e-6, atol=1e-7)


def test_an_absolute_ridge_that_is_too_small_is_raised_and_named_in_its_own_unit(caplog):
    few = torch.randint(1, 256, (1, 5), generator=torch.Generator().manual_seed(0))
    prunable, stats, _ = ranked("llama", few)
    calibration = RidgeCalibration(prunable, [1e6 * gram for gram in stats.grams], ridge=0.0, scale="absolute")
    assert (calibration.ridge > 1e-3).all()  # of what is a million times as large
    assert set(calibration.raised()) == {unit.name for unit in prunable.units}
    assert "λ raised from 0 to" in caplog.text
    assert "of the mean diagonal" not in caplog.text


def test_the_default_model_agrees_with_the_direct_solution(capsys):
    model, tokenizer = ff.load_model("smollm2-135m", dtype="float32")
    windows = ff.load_windows("python-docs", tokenizer, "calibration", 256, 8)
    prunable, stats, _ = ranked_model(model, windows)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(prunable.units), 20, replace=False)
    pairs = [(int(i), int(rng.integers(1, prunable.units[i].n_groups))) for i in chosen]
    worst = largest_difference(prunable, stats, RidgeCalibration(prunable, stats), pairs, 0.01)
    with capsys.disabled():
        print(f"\ncalibration against the direct solution, 20 random (unit, k): {worst:.1e} of the largest weight")
    assert worst < 1e-5


def ranked_model(model, windows):
    prunable = PrunableModel(model)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    return prunable, stats, windows


def test_calibration_makes_every_output_closer_to_the_dense_one(family):
    """Ridge regression minimizes ‖XW' - XW‖² + λ‖W' - W‖² over W', so the cut weight cannot beat it."""
    prunable, stats, _ = ranked(family)
    calibration = RidgeCalibration(prunable, stats)
    for i, layout in enumerate(prunable.layouts):
        columns = member_columns(layout, prunable.order[i])
        gram = stats.grams[i][columns][:, columns].double()
        gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        dense = layout.output.weight.detach().double()
        gains = []
        for k in range(1, layout.unit.n_groups):
            m = k * layout.width
            errors = []
            for weight in (calibration.weight(i, k).double(), dense[:, :m]):
                change = torch.cat([weight, torch.zeros_like(dense[:, m:])], dim=1) - dense
                errors.append(float((change @ gram * change).sum()))
            assert errors[0] <= errors[1] * (1 + 1e-9)
            gains.append(1 - errors[0] / errors[1])
        assert max(gains) > 0.01


def test_inside_the_context_the_model_is_calibrated_and_outside_it_is_dense(family):
    prunable, stats, _ = ranked(family)
    calibration = RidgeCalibration(prunable, stats)
    kept = np.array([max(1, unit.n_groups // 2) for unit in prunable.units])
    before = [p.detach().clone() for p in prunable.model.parameters()]
    wanted = [calibration.weight(i, int(k)) for i, k in enumerate(kept)]
    with prunable.pruned(kept, calibration):
        for layout, weight in zip(prunable.layouts, wanted, strict=True):
            assert torch.equal(layout.output.weight, weight)
            assert layout.output.weight.shape == (weight.shape[0], layout.output.in_features)
    assert all(torch.equal(p, q) for p, q in zip(before, prunable.model.parameters(), strict=True))
    whole = [unit.n_groups for unit in prunable.units]
    with prunable.pruned(whole, calibration):
        assert all(torch.equal(p, q) for p, q in zip(before, prunable.model.parameters(), strict=True))


def test_a_rank_deficient_gram_matrix_raises_its_ridge_and_says_so(caplog):
    few = torch.randint(1, 256, (1, 5), generator=torch.Generator().manual_seed(0))  # 5 tokens, 24 or 32 columns
    prunable, stats, _ = ranked("llama", few)
    with caplog.at_level(logging.WARNING):
        calibration = RidgeCalibration(prunable, stats, ridge=0.0)
    assert (calibration.ridge > 0).all()
    assert (calibration.ridge < 1e-2).all()
    assert set(calibration.raised()) == {unit.name for unit in prunable.units}
    assert caplog.text.count("λ raised from 0") == len(prunable.units)
    for i, unit in enumerate(prunable.units):
        assert torch.isfinite(calibration.weight(i, max(1, unit.n_groups // 2))).all()


def test_only_the_unit_that_needs_it_is_raised():
    prunable, stats, _ = ranked("llama")
    indefinite = stats.grams[3].clone()
    indefinite[0, 0] -= 0.5 * indefinite.diagonal().mean() + indefinite[0, 0]  # no rounding error, but a broken matrix
    calibration = RidgeCalibration(prunable, [*stats.grams[:3], indefinite, *stats.grams[4:]])
    assert list(calibration.raised()) == [prunable.units[3].name]
    assert calibration.ridge[3] == pytest.approx(1.0)


def test_a_unit_that_never_fires_keeps_its_weights():
    prunable, stats, _ = ranked("llama")
    grams = [torch.zeros_like(gram) for gram in stats.grams]
    calibration = RidgeCalibration(prunable, grams)
    assert torch.equal(calibration.weight(1, 3), prunable.layouts[1].output.weight[:, :3].detach())


def test_streamed_matrices_are_those_collected_at_once(family):
    prunable, stats, windows = ranked(family)
    largest = max(4 * gram.numel() for gram in stats.grams)
    for room in (1, largest, 3 * largest, 10**9):
        streamed = list(stream_grams(prunable, windows, room))
        for one, other in zip(stats.grams, streamed, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_matrices_are_let_go_one_by_one():
    prunable, stats, _ = ranked()
    matrices, left = list(stats.grams), []
    for gram in drain(matrices):
        left.append(len(matrices))
        assert gram is stats.grams[len(left) - 1]
    assert left == [5, 4, 3, 2, 1, 0]
    RidgeCalibration(prunable, drain(list(stats.grams)))


def test_a_calibration_is_void_after_another_ranking():
    prunable, stats, _ = ranked()
    calibration = RidgeCalibration(prunable, stats)
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    with pytest.raises(RuntimeError, match="ranked again"), prunable.pruned([1] * 6, calibration):
        pass
    prunable.require_dense("test")


def test_what_cannot_be_calibrated_is_refused():
    prunable, stats, windows = ranked()
    other, other_stats, _ = ranked("llama")
    with pytest.raises(ValueError, match="gram=True"):
        RidgeCalibration(prunable, collect_statistics(prunable, windows, gram=False))
    with pytest.raises(ValueError, match="ridge must be a finite number"):
        RidgeCalibration(prunable, stats, ridge=-1)
    with pytest.raises(ValueError, match="unknown scale 'total' of the ridge; allowed are relative, absolute"):
        RidgeCalibration(prunable, stats, scale="total")
    with pytest.raises(ValueError, match="allowed are device, cpu"):
        RidgeCalibration(prunable, stats, storage="tape")
    with pytest.raises(ValueError, match=r"got a Gram matrix of shape \(3, 3\)"):
        RidgeCalibration(prunable, [torch.eye(3)] * 6)
    foreign = RidgeCalibration(other, other_stats)
    with pytest.raises(ValueError, match="another PrunableModel"), prunable.pruned([1] * 6, foreign):
        pass
    broken = [gram.clone() for gram in stats.grams]
    broken[2][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn: its Gram matrix is not finite"):
        RidgeCalibration(prunable, broken)
    with pytest.raises(ValueError, match="no Cholesky factor for any λ"):
        RidgeCalibration(prunable, [*stats.grams[:5], torch.eye(24).roll(1, 0) * -1e9])
    with pytest.raises(RuntimeError, match="before you calibrate"):
        RidgeCalibration(PrunableModel(tiny_model("llama")), stats)


def test_too_little_text_for_the_fit_is_told(tiny_folder, text_file, caplog):
    settings = {"seq_len": 64, "search_windows": 1, "calibration": "ridge"}
    load_evaluator(str(tiny_folder), str(text_file), **plainly(calibration_windows=2, **settings))
    assert "calibration may fit noise: 128 tokens for units of up to 32 columns; 2 windows would do" not in caplog.text
    load_evaluator(str(tiny_folder), str(text_file), **plainly(calibration_windows=1, **settings))
    assert "calibration may fit noise: 64 tokens for units of up to 32 columns; 2 windows would do" in caplog.text


def test_a_calibrated_evaluator_measures_what_the_user_will_get(tiny_folder, text_file):
    settings = {"seq_len": 64, "search_windows": 2, "calibration_windows": 8}
    evaluator = load_evaluator(
        str(tiny_folder), str(text_file), **plainly(calibration="ridge", reward_model="calibrated", **settings)
    )
    plain = load_evaluator(str(tiny_folder), str(text_file), **plainly(ridge=0.01, calibration="ridge", **settings))
    kept = np.array([max(1, unit.n_groups // 2) for unit in evaluator.units])
    with evaluator.prunable.pruned(kept, evaluator.calibration) as model:
        expected = ff.perplexity(model, evaluator.windows)
    assert evaluator.measure(kept, 2) == pytest.approx(expected, rel=1e-3)
    assert plain.measure(kept, 2) != pytest.approx(expected, rel=1e-3)
    with plain.prunable.pruned(kept, plain.calibration) as model:
        assert ff.perplexity(model, plain.windows) == pytest.approx(expected, rel=1e-3)
    assert load_evaluator(str(tiny_folder), str(text_file), **plainly(**settings)).calibration is None
    with pytest.raises(ValueError, match="calibrated=True needs a calibration"):
        LMEvaluator(evaluator.prunable, evaluator.windows, calibrated=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("storage", ["device", "cpu"])
def test_cuda_calibrates_as_the_cpu_does(storage, tmp_path):
    here, stats, windows = ranked()
    there = PrunableModel(tiny_model("llama-gqa").to("cuda"))
    there_stats = collect_statistics(there, windows)
    there.rank(wanda_scores(here, stats))
    here.rank(wanda_scores(here, stats))
    kept = np.array([max(1, unit.n_groups // 2) for unit in here.units])
    calibrations = RidgeCalibration(here, stats), RidgeCalibration(there, there_stats, storage=storage)
    for i, k in enumerate(kept):
        one, other = (calibration.weight(i, int(k)) for calibration in calibrations)
        assert other.device.type == "cuda"
        torch.testing.assert_close(one, other.cpu(), rtol=1e-4, atol=1e-4)
    ff.save_pruned(there, kept, tmp_path / "out", calibration=calibrations[1])
    with there.pruned(kept, calibrations[1]) as model:
        expected = ff.perplexity(model, windows)
    for device in ("cpu", "cuda"):
        loaded = ff.load_pruned(tmp_path / "out", device=device)
        assert loaded.device.type == device
        assert ff.perplexity(loaded, windows) == pytest.approx(expected, rel=1e-5)


def test_matrices_of_both_texts_share_the_memory_that_there_is(monkeypatch):
    """They are made at the same time, and drained together."""
    prunable, _, windows = ranked()
    room, asked = 10_000, []

    def made(*given):
        asked.append(given[2])
        return stream_grams(*given)

    monkeypatch.setattr(fitting, "room_for_grams", lambda prunable: room)
    monkeypatch.setattr(fitting, "stream_grams", made)
    openings = windows.reshape(-1, 1)
    fitting.fit(prunable, [], windows, plain(calibration="ridge"), openings)
    assert asked == [room // 2] * 2
    asked.clear()
    fitting.fit(prunable, [], windows, plain(calibration="ridge"))
    assert asked == [room]


def test_nobody_holds_on_to_a_matrix_whose_factors_are_made(tokenizer, text_file, monkeypatch):
    """Neither who fits nor who asked for it."""
    alive = []

    class Counting(RidgeCalibration):
        def __init__(self, prunable, grams, *given):
            def counted():
                seen = []
                for gram in grams:
                    seen.append(weakref.ref(gram))
                    yield gram
                    del gram
                    alive.append(sum(x() is not None for x in seen[:-1]))

            super().__init__(prunable, counted(), *given)

    monkeypatch.setattr(fitting, "RidgeCalibration", Counting)
    sizes = {"seq_len": 32, "search_windows": 2, "calibration_windows": 4}
    build_evaluator(tiny_model("llama"), tokenizer, str(text_file), plain(calibration="ridge", **sizes))
    assert len(alive) == 6
    assert max(alive) <= 1  # the one before, until the next is taken
