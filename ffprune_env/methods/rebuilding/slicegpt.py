"""SliceGPT: the hidden state is rotated onto its principal components, and the last of them are cut off everywhere."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffprune_env.lm.head import decoder_of
from ffprune_env.methods.rebuilding.principal_components import entry_of, measure_bases
from ffprune_env.methods.rebuilding.residual_blocks import (
    Norm,
    ResidualModel,
    SlicedEmbedding,
    SlicedLayer,
    find_residual_model,
)
from ffprune_env.pruning.linear_from import linear_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@torch.no_grad()
def slicegpt(model: PreTrainedModel, windows: torch.Tensor, removed: int, batch_size: int = 1) -> PreTrainedModel:
    """Cuts the hidden state of a decoder to its first principal components, as many of them before every block.

    As the authors' code does by default: before every attention and every FFN the hidden state is rotated onto the
    eigenvectors of its second moment, as it is before the norm, measured on calibration text behind the cuts before it;
    scales, biases and mean subtraction of the norms there are folded into the neighbouring layers; the residual path
    gets a matrix per block that leads from one rotation to the next; final norm and head see all features. The hidden
    states of all the text are in memory at once, of one block at a time.

    The matrices on the residual path count as parameters: a lightly sliced model is *larger* than the dense one. Of a
    model whose head is tied to the embedding the authors' code has to keep both, one of them sliced. Here the table
    stays whole and tied, with a matrix behind it: the same function with fewer parameters, so that less of the hidden
    state has to go for as many parameters removed.

    Args:
        model: a dense causal language model; it is not changed.
        windows: int64 [n, seq_len], calibration text.
        removed: parameters of the whole model that must go, all of the above counted. 0 slices nothing, but folds and
            rotates: the same function, with more parameters.
        batch_size: windows per forward pass.

    Returns:
        A sliced copy, in evaluation mode. It can generate, with a cache; its config still names the dense width, and it
        does not record hidden states of layers. With OPT and other models with LayerNorm one component, the mean, is
        always zero, and the first to go.

    Raises:
        ValueError: more are to go than one dimension leaves, or fewer than none; there are no windows; the
            architecture is not a sequence of x + attention(norm(x)), x + ffn(norm(x)).

    Source:
        Ashkboos et al., SliceGPT, arXiv 2401.15024; github.com/microsoft/TransformerCompression. What differs is in
        docs/methods.md.
    """
    sliced, parts = _copy_in_parts(model, windows)
    kept = width_for(ParameterCount.of(sliced, parts), sliced.num_parameters(), parts.width, removed)
    _slice(sliced, parts, windows, kept, batch_size)
    before, after = model.num_parameters(), sliced.num_parameters()
    logger.info(
        "SliceGPT: %d of %d dimensions kept (%.1f %% sliced) removes %d of %d parameters (asked: %d)",
        kept,
        parts.width,
        100 * (1 - kept / parts.width),
        before - after,
        before,
        removed,
    )
    return sliced


@torch.no_grad()
def slice_to(model: PreTrainedModel, windows: torch.Tensor, kept: int, batch_size: int = 1) -> PreTrainedModel:
    """The same with the number of dimensions kept given instead, as the authors' figures are: arguments as above.

    Args:
        model: a dense causal language model; it is not changed.
        windows: int64 [n, seq_len], calibration text.
        kept: dimensions kept, 1 to all.
        batch_size: windows per forward pass.

    Raises:
        ValueError: there are not as many dimensions; otherwise as for :func:`slicegpt`.
    """
    sliced, parts = _copy_in_parts(model, windows)
    if not 1 <= kept <= parts.width:
        raise ValueError(f"SliceGPT can keep 1 to {parts.width} dimensions of this model, got {kept}")
    _slice(sliced, parts, windows, kept, batch_size)
    return sliced


def _copy_in_parts(model: PreTrainedModel, windows: torch.Tensor) -> tuple[PreTrainedModel, ResidualModel]:
    sliced = copy.deepcopy(model).eval()
    return sliced, find_residual_model(sliced, windows)


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a sliced model has: fixed + linear · k + quadratic · k² at k dimensions kept."""

    fixed: int
    linear: int
    quadratic: int

    def at(self, kept: int) -> int:
        """The number at ``kept`` dimensions."""
        return self.fixed + self.linear * kept + self.quadratic * kept**2

    @classmethod
    def of(cls, model: PreTrainedModel, parts: ResidualModel) -> ParameterCount:
        """Counts a model that is still dense."""
        inputs = [(block.norm, linear) for block in parts.blocks[:-1] for linear in block.inputs]
        outputs = [block.output for block in parts.blocks[:-2] if block.output is not None]  # the last FFN's is whole
        tables = [table for table in parts.embeddings.values() if not _is_tied(model, table)]
        changed = [*tables, *(norm.module for norm, _ in inputs), *(linear for _, linear in inputs), *outputs]
        gone = {id(parameter) for module in changed for parameter in module.parameters()}
        fixed = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in gone)
        for norm, linear in inputs:
            if linear.bias is not None or norm.bias is not None:
                fixed += linear.out_features
        entries = len(parts.embeddings) - len(tables)
        per_dimension = sum(table.num_embeddings for table in tables)
        per_dimension += (entries + 1) * parts.width  # behind a table that stays whole, and back to all at the end
        per_dimension += sum(linear.out_features for _, linear in inputs)
        per_dimension += sum(output.in_features + (output.bias is not None) for output in outputs)
        return cls(fixed, per_dimension, len(outputs))


def _is_tied(model: PreTrainedModel, table: nn.Embedding) -> bool:
    return model.get_output_embeddings().weight is table.weight


def width_for(count: ParameterCount, dense: int, width: int, removed: int) -> int:
    """The most dimensions that can be kept so that enough parameters go.

    Args:
        count: parameters of the sliced model.
        dense: parameters of the dense model.
        width: dimensions of the dense model, which is what is kept if nothing must go.
        removed: parameters that must go.

    Raises:
        ValueError: one dimension leaves more parameters than that, or ``removed`` is negative.
    """
    if removed == 0:
        return width
    enough = [kept for kept in range(1, width + 1) if dense - count.at(kept) >= removed]
    if removed < 0 or not enough:
        most = max(0, dense - count.at(1))
        raise ValueError(f"SliceGPT can remove 0 to {most} parameters of this model, {removed} were asked for")
    return enough[-1]


def _slice(model: PreTrainedModel, parts: ResidualModel, windows: torch.Tensor, kept: int, batch_size: int) -> None:
    """Rewrites a dense model in place: norms folded, hidden states rotated and cut."""
    bases = measure_bases(model, parts, windows, kept, batch_size)
    blocks = parts.blocks[:-1]
    _slice_embeddings(model, parts, entry_of(bases[0], blocks[0].norm))
    shortcuts = []
    for i, (block, basis) in enumerate(zip(blocks, bases, strict=True)):
        for linear in block.inputs:
            _fold_input(linear, block.norm, basis)
        output = block.output
        assert output is not None
        shortcut = basis.to(output.weight.device)  # behind the last block, to all features again
        if i + 1 < len(blocks):
            entry = entry_of(bases[i + 1], blocks[i + 1].norm).to(output.weight.device)
            _rotate_output(output, entry)
            shortcut = entry.T @ shortcut  # of a linear layer: the transpose of the paper's matrix
        shortcuts.append(linear_from(shortcut.to(output.weight.dtype)))
    _replace_layers(parts, shortcuts)


def _slice_embeddings(model: PreTrainedModel, parts: ResidualModel, entry: torch.Tensor) -> None:
    for name, table in parts.embeddings.items():
        there = entry.to(table.weight.device)
        if _is_tied(model, table):
            narrowed = SlicedEmbedding(table, linear_from(there.T.contiguous().to(table.weight.dtype)))
            setattr(decoder_of(model), name, narrowed.eval())
        else:
            table.weight = nn.Parameter((table.weight.double() @ there).to(table.weight.dtype))
            table.embedding_dim = entry.shape[1]


def _fold_input(linear: nn.Linear, norm: Norm, basis: torch.Tensor) -> None:
    """Makes a linear layer behind a norm read the rotated hidden state without the norm's scale and bias."""
    weight = linear.weight.double()
    bias = None if linear.bias is None else linear.bias.double()
    if norm.bias is not None:
        added = weight @ norm.bias.to(weight.device)
        bias = added if bias is None else bias + added
    folded = (weight * norm.scale.to(weight.device)) @ basis.to(weight.device)
    _rewrite(linear, folded, bias)


def _rotate_output(linear: nn.Linear, entry: torch.Tensor) -> None:
    """Makes a linear layer write into a rotated hidden state."""
    bias = None if linear.bias is None else entry.T @ linear.bias.double()
    _rewrite(linear, entry.T @ linear.weight.double(), bias)


def _rewrite(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    # New parameters, not new data of the old ones, which a layer that is not sliced may share.
    dtype = linear.weight.dtype
    linear.weight = nn.Parameter(weight.to(dtype))
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.to(dtype)))
    linear.out_features, linear.in_features = weight.shape


def _replace_layers(parts: ResidualModel, shortcuts: Sequence[nn.Module]) -> None:
    for i, (attention, ffn) in enumerate(zip(parts.attentions, parts.ffns, strict=True)):
        norms = (block.norm.without_scale() for block in parts.blocks[2 * i : 2 * i + 2])
        layer = SlicedLayer(next(norms), attention, shortcuts[2 * i], next(norms), ffn, shortcuts[2 * i + 1])
        parts.layers[i] = layer.eval()
