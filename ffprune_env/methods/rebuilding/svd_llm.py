"""SVD-LLM: every projection becomes a product of two thin ones that loses least on the calibration text."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import torch

from ffprune_env.methods.rebuilding.low_rank import factored, whitening_root
from ffprune_env.methods.rebuilding.low_rank_update import update_second_factors
from ffprune_env.methods.rebuilding.projections import SharedInput, second_moments, shared_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

#: Memory for Gram matrices of one run; a 7B model takes six runs.
GRAM_BYTES = 4 * 2**30


@torch.no_grad()
def svd_llm(
    model: PreTrainedModel, windows: torch.Tensor, removed: int, batch_size: int = 1, update: bool = True
) -> PreTrainedModel:
    """Compresses all projections of the decoder layers by truncation-aware data whitening, at one ratio.

    A matrix of m rows and n columns gets rank floor(ratio · m n / (m + n)); the ratio is the largest that removes
    enough. Whitening sees statistics of the dense model. Then the second factors are updated in closed form, layer
    after layer, for what really reaches them. The authors' fine-tuning with LoRA is left out, as for every method here.
    The text is run through the copy once for every 4 GiB of Gram matrices, the last layers first, so that
    what was factored already is behind what is measured, and then about twice for the update.

    Args:
        model: a dense causal language model; it is not changed.
        windows: int64 [n, seq_len], calibration text.
        removed: parameters of the whole model that must go; 0 factors nothing.
        batch_size: windows per forward pass.
        update: False leaves the update out ("SVD-LLM (W)").

    Returns:
        A compressed copy, in evaluation mode.

    Raises:
        ValueError: more are to go than rank 1 everywhere removes, or fewer than none; there are no windows; the model
            has linear layers that cannot be replaced.

    Source:
        Wang et al., SVD-LLM, arXiv 2403.07378; github.com/AIoT-MLSys-Lab/SVD-LLM. What differs is in docs/methods.md.
    """
    compressed = copy.deepcopy(model).eval()
    inputs = shared_inputs(compressed, windows)
    shapes = Counter((x.out_features, x.in_features) for layer in inputs for group in layer for x in group.linears)
    ratio = ratio_for(shapes, removed)
    if ratio < 1:
        every = [group for layer in inputs for group in layer]
        for group, gram in _grams_from_the_end(compressed, every, windows, batch_size):
            root = whitening_root(gram)
            for name, linear in zip(group.names, group.linears, strict=True):
                rank = rank_at(ratio, linear.out_features, linear.in_features)
                if rank * (linear.out_features + linear.in_features) < linear.weight.numel():
                    group.layer.set_submodule(name, factored(linear, root, rank))
        if update:
            update_second_factors(model, compressed, inputs, windows, batch_size)
    before, after = model.num_parameters(), compressed.num_parameters()
    logger.info("SVD-LLM: ratio %.4f removes %d of %d parameters (asked: %d)", ratio, before - after, before, removed)
    return compressed


def ratio_for(shapes: Counter[tuple[int, int]], removed: int) -> Fraction:
    """The largest ratio that removes enough parameters.

    Args:
        shapes: how many matrices there are of each shape (m, n).
        removed: parameters that must go.

    Returns:
        The ratio, exactly; 1 if nothing must go.

    Raises:
        ValueError: rank 1 everywhere does not remove as much, or ``removed`` is negative.
    """
    if removed == 0:
        return Fraction(1)
    # Ranks change at these ratios only, and between them the larger ratio removes the same.
    steps = {Fraction(r * (m + n), m * n) for m, n in shapes for r in range(1, -(-m * n // (m + n)))}
    ratios = sorted(steps)
    most = _removed_at(ratios[0], shapes) if ratios else 0
    if not 0 <= removed <= most:
        raise ValueError(f"SVD-LLM can remove 0 to {most} parameters of this model, {removed} were asked for")
    few, many = 0, len(ratios)  # ratios[few] removes enough, ratios[many] does not
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if _removed_at(ratios[middle], shapes) >= removed else (few, middle)
    return ratios[few]


def rank_at(ratio: Fraction, m: int, n: int) -> int:
    """Rank of an m by n matrix whose two factors hold at most that fraction of its parameters; 1 at the least."""
    return max(1, int(ratio * m * n / (m + n)))


def _removed_at(ratio: Fraction, shapes: Counter[tuple[int, int]]) -> int:
    return sum(count * max(0, m * n - rank_at(ratio, m, n) * (m + n)) for (m, n), count in shapes.items())


def _grams_from_the_end(
    model: PreTrainedModel, inputs: Sequence[SharedInput], windows: torch.Tensor, batch_size: int
) -> Iterator[tuple[SharedInput, torch.Tensor]]:
    """Yields G of every input, the last first, in as many runs over the text as it takes for them to fit."""
    left = list(inputs)
    while left:
        chunk: list[SharedInput] = []
        taken = 0
        while left:
            linear = left[-1].linears[0]
            taken += torch.promote_types(torch.float32, linear.weight.dtype).itemsize * linear.in_features**2
            if taken > GRAM_BYTES and chunk:
                break
            chunk.append(left.pop())
        grams = second_moments(model, [group.linears[0] for group in chunk], windows, batch_size)
        for group in chunk:
            yield group, grams.pop(0)  # taken off the list, so that what was used can be freed
