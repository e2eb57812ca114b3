"""SVD-LLM: the best matrix of its rank for the text, at one ratio that removes as many parameters as were asked."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from fractions import Fraction

import pytest
import torch
from conftest import tiny_model
from torch import nn

import ffprune_env as ff
from ffprune_env.methods.rebuilding import svd_llm as module
from ffprune_env.methods.rebuilding.low_rank import LowRankLinear, low_rank_factors, whitening_root
from ffprune_env.methods.rebuilding.low_rank_update import best_second
from ffprune_env.methods.rebuilding.svd_llm import rank_at, ratio_for, svd_llm
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores


def count(model):
    return sum(p.numel() for p in model.parameters())


def logits(model, windows):
    with torch.no_grad():
        return model(windows, use_cache=False).logits


def linears(model):
    return {name: x for name, x in model.model.named_modules() if isinstance(x, nn.Linear)}


def factored(model):
    return {name: x for name, x in model.model.named_modules() if isinstance(x, LowRankLinear)}


def rank(layer):
    return layer.first.out_features


def long_windows():
    return torch.randint(1, 256, (8, 32), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
def test_the_product_is_the_best_of_its_rank(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.randn(200, shape[1], generator=generator, dtype=torch.float64)
    x *= 0.7 ** torch.arange(shape[1])
    root = whitening_root(x.T @ x)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    best = torch.linalg.svdvals(x @ weight.T)  # no matrix of rank r comes closer to X Wᵀ than these allow
    better = 0
    for r in range(1, min(shape) + 1):
        second, first = low_rank_factors(weight, root, r)
        assert second.shape == (shape[0], r)
        assert first.shape == (r, shape[1])
        residual = (x @ (weight - second @ first).T).norm()
        plain = (x @ (weight - u[:, :r] @ torch.diag(s[:r]) @ v[:r]).T).norm()
        if r < min(shape):
            assert residual == pytest.approx(float(best[r:].square().sum().sqrt()), rel=1e-4)
            assert residual <= plain
            better += bool(residual < 0.9 * plain)
        else:
            torch.testing.assert_close(second @ first, weight, rtol=1e-12, atol=1e-12)
    assert better > min(shape) // 2


def test_whitening_is_a_root_of_the_second_moments():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root = whitening_root(x.T @ x)
    torch.testing.assert_close(root @ root.T, x.T @ x, rtol=1e-6, atol=1e-6)
    few = whitening_root((x[:3].T @ x[:3]).float())
    torch.testing.assert_close(few @ few.T, x[:3].T @ x[:3], rtol=1e-3, atol=1e-3)
    assert torch.isfinite(whitening_root(torch.zeros(4, 4))).all()
    with pytest.raises(ValueError, match="no Gram matrix"):
        whitening_root(torch.eye(4).roll(1, 0) * -1e9)


def test_every_projection_of_a_model_is_the_best_of_its_rank(family):
    model, windows = tiny_model(family), long_windows()
    inputs = {}
    hooks = [
        x.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].flatten(0, -2)}))
        for name, x in linears(model).items()
    ]
    logits(model, windows)
    for hook in hooks:
        hook.remove()
    replaced = factored(svd_llm(model, windows, removed=count(model) // 6, batch_size=8, update=False))
    assert replaced.keys() == inputs.keys()
    for name, layer in replaced.items():
        x, dense = inputs[name], linears(model)[name]
        with torch.no_grad():
            residual = (layer(x) - dense(x)).norm()  # the bias is in both
        best = torch.linalg.svdvals(x @ dense.weight.detach().T)[rank(layer) :]
        assert residual == pytest.approx(float(best.square().sum().sqrt()), rel=1e-4)
        torch.testing.assert_close(layer.weight, layer.second.weight @ layer.first.weight)
        assert layer.weight.shape == (layer.out_features, layer.in_features) == dense.weight.shape
        assert (layer.bias is None) == (dense.bias is None)


def test_second_factors_are_least_squares_for_what_reaches_them(family):
    """The authors' formula: every dense layer on what the compressed ones before it give, and torch's own solver."""
    model, windows = tiny_model(family), long_windows()
    small = svd_llm(model, windows, count(model) // 6, batch_size=3)
    plain = factored(svd_llm(model, windows, count(model) // 6, batch_size=3, update=False))
    entered, inputs, hooks = {}, {}, []
    for i, layer in enumerate(small.get_decoder().layers):
        note = lambda _, args, kwargs, i=i: entered.update({i: (args, kwargs)})  # noqa: E731
        hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    logits(small, windows)
    for name, x in linears(model).items():
        note = lambda _, args, name=name: inputs.update({name: args[0].flatten(0, -2)})  # noqa: E731
        hooks.append(x.register_forward_pre_hook(note))
    with torch.no_grad():
        for i, layer in enumerate(model.get_decoder().layers):
            layer(*entered[i][0], **entered[i][1])
    for hook in hooks:
        hook.remove()
    for name, layer in factored(small).items():
        x, weight, first = inputs[name], linears(model)[name].weight.detach(), layer.first.weight.detach()
        assert torch.equal(first, plain[name].first.weight)
        expected = torch.linalg.lstsq(x @ first.T, x @ weight.T).solution.T
        torch.testing.assert_close(layer.second.weight.detach(), expected, rtol=1e-4, atol=1e-4)
        change = (layer.second.weight - plain[name].second.weight).norm() / plain[name].second.weight.norm()
        # Nothing before the first layer is compressed, so that whitening alone is best there.
        assert change < 1e-4 if "layers.0." in name else change > 1e-2


def test_a_text_too_short_for_least_squares_leaves_the_factors_as_they_are(windows, caplog):
    """Fitted to 512 tokens, smollm2-135m went from a perplexity of 1074 to 555364; four tokens per rank are enough."""
    model = tiny_model("llama")
    removed = count(model) // 6
    ranks = {name: rank(layer) for name, layer in factored(svd_llm(model, windows, removed)).items()}
    assert len(set(ranks.values())) > 1
    least = min(ranks.values())
    text = windows.flatten()[None, : 4 * least]  # enough for some of them alone
    plain, fitted = (factored(svd_llm(model, text, removed, update=update)) for update in (False, True))
    kept = {name for name in plain if torch.equal(plain[name].second.weight, fitted[name].second.weight)}
    short = {name for name in ranks if ranks[name] > least}
    assert short <= kept
    assert {name for name in fitted if fitted[name].lacks_update} == short
    assert not any(layer.lacks_update for layer in plain.values())  # nobody asked
    assert any(name not in kept for name in ranks)
    assert f"{len(short)} matrices go without the update of their factors: {4 * least} tokens" in caplog.text
    assert f"too few for ranks up to {max(ranks.values())}, {4 * max(ranks.values())} would do" in caplog.text
    assert "\n" not in caplog.records[-1].getMessage()
    caplog.clear()
    svd_llm(model, windows.repeat(2, 1), removed)
    assert "without the update" not in caplog.text


def test_the_best_second_factor_by_hand():
    """Of x₁ and x₂ = x₁ the first factor keeps x₁ alone, and the second makes up for the other: 2 x₁ + 3 x₂ = 5 x₁."""
    gram = torch.ones(2, 2, dtype=torch.float64)
    second = best_second(torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 0.0]]), gram)
    torch.testing.assert_close(second, torch.tensor([[5.0]], dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_nothing_removed_is_the_dense_model(family, windows):
    model = tiny_model(family)
    same = svd_llm(model, windows, removed=0)
    assert not factored(same)
    assert same is not model
    assert torch.equal(logits(model, windows), logits(same, windows))


def test_enough_parameters_go_at_one_ratio_and_the_model_stays(family, windows):
    model = tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    shapes = Counter(tuple(x.weight.shape) for x in linears(model).values())
    for removed in (1, count(model) // 10, count(model) // 4):
        ratio = ratio_for(shapes, removed)
        small = svd_llm(model, windows, removed)
        gone = count(model) - count(small)
        assert gone >= removed
        for name, x in linears(model).items():
            kept = factored(small).get(name)
            m, n = x.weight.shape
            if kept is None:  # no rank at the ratio holds less than the matrix itself
                assert rank_at(ratio, m, n) * (m + n) >= m * n
            else:
                assert rank(kept) == max(1, int(ratio * m * n / (m + n)))
        assert torch.isfinite(torch.tensor(ff.perplexity(small, windows)))
        assert count(model) - count(svd_llm(model, windows, gone)) == gone
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(x._forward_pre_hooks for x in model.modules())


def test_the_ratio_is_the_largest_of_all():
    shapes = Counter({(6, 6): 3, (14, 6): 2, (6, 14): 1, (3, 6): 2, (1, 9): 1})
    every = sorted({Fraction(i, 5040) for i in range(1, 5040)})

    def gone(ratio):
        ranks = {shape: max(1, int(ratio * shape[0] * shape[1] / sum(shape))) for shape in shapes}
        return sum(n * max(0, s[0] * s[1] - ranks[s] * sum(s)) for s, n in shapes.items())

    reachable = sorted({gone(ratio) for ratio in every})
    for removed in range(1, reachable[-1] + 1):
        assert gone(ratio_for(shapes, removed)) == min(n for n in reachable if n >= removed)
    for removed in (-1, reachable[-1] + 1):
        with pytest.raises(ValueError, match=f"can remove 0 to {reachable[-1]} parameters"):
            ratio_for(shapes, removed)


def test_many_runs_give_what_one_gives(family, windows, monkeypatch):
    model = tiny_model(family)
    once = svd_llm(model, windows, count(model) // 6)
    monkeypatch.setattr(module, "GRAM_BYTES", 1)
    for name, layer in factored(svd_llm(model, windows, count(model) // 6)).items():
        torch.testing.assert_close(layer.weight, factored(once)[name].weight, rtol=1e-9, atol=1e-9)


def test_inputs_that_are_shared_are_measured_once(family, windows, monkeypatch):
    model, taps = tiny_model(family), []
    real = module.second_moments
    monkeypatch.setattr(module, "second_moments", lambda m, t, *rest: taps.extend(t) or real(m, t, *rest))
    svd_llm(model, windows, 100)
    assert len(taps) == 4 * len(model.get_decoder().layers)


def test_a_wrapped_and_ranked_model_compresses_to_the_same_function(family, windows):
    model = tiny_model(family)
    expected = svd_llm(model, windows, count(model) // 8)
    prunable = PrunableModel(model)
    prunable.rank(wanda_scores(prunable, collect_statistics(prunable, windows)))
    small = svd_llm(prunable.model, windows, count(model) // 8)
    assert count(small) == count(expected)
    torch.testing.assert_close(logits(small, windows), logits(expected, windows), rtol=1e-4, atol=1e-4)


def test_a_compressed_model_generates_with_a_cache(family, windows):
    model = tiny_model(family)
    small = svd_llm(model, windows, count(model) // 6)
    prompt = windows[:1, :9]
    tokens = small.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    plain = small.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(tokens, plain)
    assert tokens.shape == (1, 15)


def test_the_dtype_stays_and_the_log_tells_the_ratio(windows, caplog):
    model = tiny_model("llama-gqa").bfloat16()
    with caplog.at_level(logging.INFO):
        small = svd_llm(model, windows, 3000)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert f"removes {count(model) - count(small)} of {count(model)} parameters (asked: 3000)" in caplog.text


def test_what_cannot_be_compressed_is_refused(windows):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"can remove 0 to \d+ parameters of this model, 10000000 were"):
        svd_llm(model, windows, 10**7)
    with pytest.raises(ValueError, match=r"n ≥ 1, got shape \(0, 8\)"):
        svd_llm(model, windows[:0, :8], 100)
    broken = tiny_model("llama")
    broken.model.embed_tokens.weight.data[windows[2, 5]] = torch.nan
    with pytest.raises(ValueError, match="is not finite on the calibration text"):
        svd_llm(broken, windows, 100)
    broken.model.layers[1].mlp.spare = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"mlp\.spare of a LlamaDecoderLayer"):
        svd_llm(broken, windows, 100)
    adapted = tiny_model("llama")
    adapted.model.layers[1].mlp.up_proj.__class__ = type("Adapted", (nn.Linear,), {})
    with pytest.raises(ValueError, match=r"mlp\.up_proj is a Adapted"):
        svd_llm(adapted, windows, 100)
