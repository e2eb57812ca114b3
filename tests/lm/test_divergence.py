"""KL to the dense model against the obvious computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model

from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.lm import loss
from ffprune_env.lm.divergence import compare_with_dense, final_hidden_states
from ffprune_env.lm.loss import perplexity
from ffprune_env.pruning.prunable import PrunableModel


@pytest.fixture
def prunable(family: str) -> PrunableModel:
    wrapped = PrunableModel(tiny_model(family))
    wrapped.rank([np.arange(unit.n_groups) for unit in wrapped.units])
    return wrapped


def test_divergence_is_kl_from_dense_to_pruned(prunable, windows, monkeypatch):
    monkeypatch.setattr(loss, "_LOGIT_BYTES", 4 * 256 * 7)  # seven rows at a time
    model, kept = prunable.model, [2, 10] * 3
    dense = final_hidden_states(model, windows, batch_size=2)
    with torch.no_grad():
        p = model(windows).logits.double().log_softmax(-1)
        with prunable.pruned(kept):
            q = model(windows).logits.double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1).mean().item()
    with prunable.pruned(kept):
        for batch_size in (1, 2, 3):
            ppl, kl = compare_with_dense(model, windows, dense, batch_size)
            assert kl == pytest.approx(expected, rel=1e-4)
            assert ppl == pytest.approx(perplexity(model, windows), rel=1e-6)


def test_the_dense_model_does_not_diverge(prunable, windows):
    dense = final_hidden_states(prunable.model, windows)
    assert compare_with_dense(prunable.model, windows, dense)[1] == pytest.approx(0, abs=1e-6)


def test_the_evaluator_compares_with_the_ranked_dense_model_on_the_same_windows(prunable, windows):
    evaluator = LMEvaluator(prunable, windows)
    kept = np.array([2, 10] * 3)
    with prunable.pruned(kept):
        pruned_first = final_hidden_states(prunable.model, windows[:1])
    expected = loss_between(prunable, final_hidden_states(prunable.model, windows[:1])[0], pruned_first[0])
    assert evaluator.compare(kept, 1)[1] == pytest.approx(expected, rel=1e-4)
    assert evaluator.compare(kept, 3)[1] != evaluator.compare(kept, 1)[1]
    assert evaluator.compare(kept, 3)[0] == evaluator.measure(kept, 3)  # from memory, and so to the bit
    before = evaluator.compare(kept, 3)[1]
    prunable.rank([-np.arange(unit.n_groups) for unit in prunable.units])  # other groups go now
    assert evaluator.compare(kept, 3)[1] != before
    assert evaluator.compare(np.array([unit.n_groups for unit in prunable.units]), 3)[1] == pytest.approx(0, abs=1e-6)


def loss_between(prunable: PrunableModel, dense: torch.Tensor, pruned: torch.Tensor) -> float:
    with torch.no_grad():
        p, q = (loss.vocabulary_logits(prunable.model, x).double().log_softmax(-1) for x in (dense, pruned))
    return (p.exp() * (p - q)).sum(-1).mean().item()


def test_a_model_that_gives_no_numbers_diverges_without_bound(windows):
    model = tiny_model("llama")
    dense = final_hidden_states(model, windows)
    model.model.norm.weight.data.fill_(torch.nan)
    assert compare_with_dense(model, windows, dense) == (float("inf"), float("inf"))
