"""Which heads and channels matter: statistics of what flows into its output projection, and scores made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.lm.batches import in_fitting_batches
from ffprune_env.lm.cost import count_forward
from ffprune_env.lm.head import decoder_outputs
from ffprune_env.lm.phases import phase, windows_size
from ffprune_env.pruning.gram import add_products
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.streaming import weight_of
from ffprune_env.pruning.unit_layout import member_columns

_GRAM_ITEM = torch.float32.itemsize


@dataclass(frozen=True)
class Statistics:
    """First and second moments of the inputs X of every output projection of the dense model.

    Attributes:
        square_norms: per unit, float32 [columns], ‖X_j‖₂² summed over tokens, in original column order.
        means: per unit, float32 [columns], mean of X_j over tokens, in original column order.
        grams: per unit, float32 [columns, columns], G = XᵀX in original column order; None if not asked for.
        n_tokens: tokens the sums run over.
    """

    square_norms: tuple[torch.Tensor, ...]
    means: tuple[torch.Tensor, ...]
    grams: tuple[torch.Tensor, ...] | None
    n_tokens: int


def collect_statistics(
    prunable: PrunableModel, windows: torch.Tensor, gram: bool = True, batch_size: int | None = 1
) -> Statistics:
    """Runs the dense model over calibration text and accumulates G = XᵀX, or its diagonal, for every unit.

    Sums are kept in float32 on the device of each unit, whatever the model's dtype.

    Args:
        prunable: the model, not pruned now.
        windows: int64 [n, seq_len], calibration text.
        gram: False keeps column norms only, for models whose G would not fit.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.

    Raises:
        RuntimeError: the model is pruned.
        ValueError: there are no windows, or an activation is not finite.
    """
    sums, means = _moments(prunable, windows, range(len(prunable.units)), gram, batch_size)
    norms = tuple(total.diagonal().clone() if gram else total for total in sums)
    return Statistics(norms, tuple(means), tuple(sums) if gram else None, windows.numel())


def gram_bytes(prunable: PrunableModel) -> int:
    """Memory that the Gram matrices of all units take, in bytes."""
    return sum(_GRAM_ITEM * layout.output.in_features**2 for layout in prunable.layouts)


def stream_grams(
    prunable: PrunableModel,
    windows: torch.Tensor,
    max_bytes: int,
    batch_size: int | None = 1,
    pass_tokens: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yields G of every unit in turn, running the model as often as it takes for the matrices to fit.

    Args:
        prunable: the model, not pruned now.
        windows: int64 [n, seq_len], calibration text.
        max_bytes: memory for Gram matrices; one unit's are made whatever they take.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.
        pass_tokens: tokens that count as a pass; None: those of a window.

    Yields:
        float32 [columns, columns] in original column order, on the unit's device.

    Raises:
        RuntimeError: the model is pruned.
        ValueError: there are no windows, or an activation is not finite.
    """
    start = 0
    while start < len(prunable.units):
        end, taken = start, 0
        while end < len(prunable.units):
            taken += _GRAM_ITEM * prunable.layouts[end].output.in_features ** 2
            if taken > max_bytes and end > start:
                break
            end += 1
        yield from drain(_moments(prunable, windows, range(start, end), True, batch_size, pass_tokens)[0])
        start = end


def drain(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yields tensors in order, and takes each off the list, so that what was used can be freed."""
    tensors.reverse()
    while tensors:
        yield tensors.pop()


def wanda_scores(prunable: PrunableModel, stats: Statistics) -> list[FloatArray]:
    """Structured Wanda: s_j = ‖X_j‖₂ · Σ_i |W_ij| for column j of the output projection, summed over a head's.

    Args:
        prunable: the model, not pruned now.
        stats: statistics of the dense model.

    Returns:
        N arrays, [n_members] each: of every head or channel, in original order.

    Source:
        Sun et al., A Simple and Effective Pruning Approach for LLMs, made structural as in arXiv 2511.18977.
    """
    prunable.require_dense("score")
    scores = []
    for i, (layout, square_norm) in enumerate(zip(prunable.layouts, stats.square_norms, strict=True)):
        with weight_of(layout.output) as weight:
            weight_norm = weight.abs().sum(dim=0, dtype=torch.float32)
        columns = square_norm.to(weight_norm.device).sqrt() * to_original_order(prunable, i, weight_norm)
        scores.append(columns.view(-1, layout.member_width).sum(dim=1).double().cpu().numpy())
    return scores


def wifv_scores(prunable: PrunableModel, stats: Statistics) -> list[FloatArray]:
    """FLAP's score of heads and channels: its fluctuations, averaged over the columns of a head.

    Arguments and result as for :func:`wanda_scores`.

    Source:
        An et al., Fluctuation-based Adaptive Structured Pruning, arXiv 2312.11983 ("WIFV").
    """
    return [
        columns.view(-1, layout.member_width).mean(dim=1).cpu().numpy()
        for layout, columns in zip(prunable.layouts, fluctuations(prunable, stats), strict=True)
    ]


def fluctuations(prunable: PrunableModel, stats: Statistics) -> list[torch.Tensor]:
    """Var(X_j) · Σ_i W_ij² of every column of every output projection, squared if that is an attention's.

    The paper has no such square, its authors' code (github.com/CASIA-IVA-Lab/FLAP, lib/prune.py) has: it lets the few
    columns that fluctuate most decide about a head.

    Returns:
        Per unit, float64 [columns], in original order.
    """
    prunable.require_dense("score")
    result = []
    for i, (layout, square_norm, mean) in enumerate(
        zip(prunable.layouts, stats.square_norms, stats.means, strict=True)
    ):
        with weight_of(layout.output) as matrix:
            weight = matrix.float().square().sum(dim=0)
        variance = (square_norm / stats.n_tokens - mean.square()).clamp(min=0)
        columns = (variance.to(weight.device) * to_original_order(prunable, i, weight)).double()
        result.append(columns.square() if layout.unit.kind == "attention" else columns)
    return result


def _moments(
    prunable: PrunableModel,
    windows: torch.Tensor,
    indices: Sequence[int],
    gram: bool,
    batch_size: int | None,
    pass_tokens: int | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """G = XᵀX, or its diagonal, and the means of some units in original column order, from one run over the windows."""
    if windows.ndim != 2 or not windows.numel():
        raise ValueError(f"calibration windows must be [n, seq_len] with n ≥ 1, got shape {tuple(windows.shape)}")
    prunable.require_dense("collect statistics of")
    sums, means = [], []
    size = f"{len(indices)} units, {windows_size(tuple(windows.shape))}"
    with phase("statistics", size, len(windows)) as advance, ExitStack() as hooks, torch.inference_mode():
        for i in indices:
            output = prunable.layouts[i].output
            shape = (output.in_features,) * (2 if gram else 1)
            device = prunable.layouts[i].device
            total = torch.zeros(shape, dtype=torch.float32, device=device)
            mean = torch.zeros(output.in_features, dtype=torch.float32, device=device)
            hooks.callback(output.register_forward_pre_hook(_accumulate(total, mean, windows.numel())).remove)
            sums.append(total)
            means.append(mean)

        def run(size: int) -> None:
            for moment in (*sums, *means):  # a pass that memory cut short has left its part in them
                moment.zero_()
            for batch in torch.split(windows, size):
                decoder_outputs(prunable.model, batch)
                count_forward(batch, pass_tokens=pass_tokens)
                advance(len(batch))

        in_fitting_batches(prunable.model, windows, batch_size, run)
    for place, i in enumerate(indices):
        norms = sums[place].diagonal() if gram else sums[place]
        if not bool(torch.isfinite(norms).all()):
            name = prunable.units[i].name
            raise ValueError(f"{name}: its activations are not finite on the calibration text: check weights and dtype")
        # One at a time: a second copy of all may not fit.
        sums[place] = to_original_order(prunable, i, sums[place], both=gram)
        means[place] = to_original_order(prunable, i, means[place])
    return sums, means


def _accumulate(
    total: torch.Tensor, mean: torch.Tensor, n_tokens: int
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    """A hook that adds XᵀX, or its diagonal if ``total`` is a vector, and the sum of X over ``n_tokens``."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2)  # (B * T, columns)
        mean.add_(x.sum(dim=0, dtype=torch.float32), alpha=1 / n_tokens)
        if total.ndim == 2:
            add_products(total, x, x)
        else:
            total.add_(x.float().square().sum(dim=0))

    return hook


def to_original_order(prunable: PrunableModel, i: int, current: torch.Tensor, both: bool = False) -> torch.Tensor:
    """Undoes the ranking of unit i along the first dimension of a tensor over its columns, or along the first two."""
    columns = member_columns(prunable.layouts[i], prunable.order[i])
    place = torch.empty_like(columns)
    place[columns] = torch.arange(len(columns), device=columns.device)
    return current[place][:, place] if both else current[place]
