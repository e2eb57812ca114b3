"""What is reported about a policy: its size and its perplexity on search and on test text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.table import Table

from ffprune_env.budget import BASELINES, Allocation, IntArray, whole
from ffprune_env.evaluator import LMEvaluator
from ffprune_env.loss import perplexity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyResult:
    """One policy, measured; the objects of ``best.json``.

    Attributes:
        kept: int64 [N], groups kept per unit.
        sparsity: fraction of Σ w removed.
        total_sparsity: fraction of all parameters of the model removed.
        params: parameters that stay.
        calibrated: whether the surviving weights were re-fitted.
        search_ppl: perplexity on all windows of search text.
        test_ppl: perplexity on test text.
    """

    kept: IntArray
    sparsity: float
    total_sparsity: float
    params: int
    calibrated: bool
    search_ppl: float
    test_ppl: float


def measure_policy(
    evaluator: LMEvaluator, allocation: Allocation, test_windows: torch.Tensor, batch_size: int = 1
) -> PolicyResult:
    """Measures one allocation on all windows of search text and on test text.

    Args:
        evaluator: the model and its search text.
        allocation: what to keep.
        test_windows: int64 [n, seq_len].
        batch_size: windows per forward pass on test text.
    """
    prunable, kept = evaluator.prunable, allocation.kept
    with prunable.pruned(kept) as model:
        test_ppl = perplexity(model, test_windows, batch_size)
    return PolicyResult(
        kept=kept,
        sparsity=prunable.sparsity(kept),
        total_sparsity=prunable.total_sparsity(kept),
        params=prunable.params(kept),
        calibrated=False,
        search_ppl=evaluator.measure(kept, evaluator.max_samples),
        test_ppl=test_ppl,
    )


def reference_policies(sparsity: float, evaluator: LMEvaluator) -> dict[str, Allocation]:
    """What every search is compared with: `dense`, `uniform` and `ffn-only`, as far as they reach the sparsity."""
    policies = {"dense": whole(evaluator.units)}
    for name, baseline in BASELINES.items():
        try:
            policies[name] = baseline(sparsity, evaluator.units)
        except ValueError as error:
            logger.warning("no %s to compare with: %s", name, error)
    return policies


def results_table(results: Mapping[str, PolicyResult], test_windows: torch.Tensor) -> Table:
    """The table a person reads at the end of a run."""
    table = Table(title=f"Perplexity (test text: {len(test_windows)} windows of {test_windows.shape[1]} tokens)")
    table.add_column("policy")
    for column in (
        "removed\nof Σw",
        "removed\nof model",
        "params\nleft",
        "search\nPPL",
        "test\nPPL",
        "against\nuniform",
    ):
        table.add_column(column, justify="right")
    uniform = results.get("uniform")
    for name, result in results.items():
        table.add_row(
            "searched" if name == "chosen" else name,
            f"{result.sparsity:.2%}",
            f"{result.total_sparsity:.2%}",
            f"{result.params / 1e6:.1f} M",
            f"{result.search_ppl:.2f}",
            f"{result.test_ppl:.2f}",
            "" if uniform is None else f"{result.test_ppl / uniform.test_ppl - 1:+.1%}",
        )
    return table
