"""SliceGPT: the hidden state is rotated onto its principal components, and the last of them are cut off everywhere."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffprune_env.methods.principal_components import entry_of, measure_bases
from ffprune_env.methods.projections import linear_of
from ffprune_env.methods.residual_blocks import Norm, ResidualModel, SlicedLayer, find_residual_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@torch.no_grad()
def slicegpt(model: PreTrainedModel, windows: torch.Tensor, removed: int, batch_size: int = 1) -> PreTrainedModel:
    """Cuts the hidden state of a decoder to its first principal components, as many of them in every place.

    Before every block (each attention, each FFN, the head) the hidden state is rotated onto the eigenvectors of the
    second moment of what the norm there gives without its scale. It is measured on calibration text behind the cuts
    before it, as the authors' code does; the hidden states of all the text are in memory at once, of one block at a
    time. Scales, biases and mean subtraction of the norms are folded into the neighbouring layers, and the residual
    path gets a matrix per block that leads from one rotation to the next. The head is cut like every block. The
    matrices on the residual path, a head that is no longer tied, and its bias where the final norm has one count as
    parameters: a lightly sliced model is *larger* than the dense one.

    Args:
        model: a dense causal language model; it is not changed.
        windows: int64 [n, seq_len], calibration text.
        removed: parameters of the whole model that must go, all of the above counted. 0 slices nothing, but folds and
            rotates: the same function, with more parameters.
        batch_size: windows per forward pass.

    Returns:
        A sliced copy, in evaluation mode; its embeddings are as wide as what was kept. It can generate, with a cache;
        its config still names the dense width, and it does not record hidden states of layers. With OPT and other
        models with LayerNorm one component, the mean, is always zero, and the first to go.

    Raises:
        ValueError: more are to go than one dimension leaves, or fewer than none; there are no windows; the
            architecture is not a sequence of x + attention(norm(x)), x + ffn(norm(x)).

    Source:
        Ashkboos et al., SliceGPT, arXiv 2401.15024.
    """
    sliced = copy.deepcopy(model).eval()
    parts = find_residual_model(sliced, windows)
    before = sum(p.numel() for p in sliced.parameters())
    kept = width_for(ParameterCount.of(sliced, parts), before, parts.width, removed)
    _rotate(sliced, parts, measure_bases(sliced, parts, windows, kept, batch_size), kept)
    after = sum(p.numel() for p in sliced.parameters())
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
        inputs = [(block.norm, linear) for block in parts.blocks for linear in block.inputs]
        outputs = [block.output for block in parts.blocks if block.output is not None]
        changed = [*parts.embeddings, *(norm.module for norm, _ in inputs), *(linear for _, linear in inputs), *outputs]
        gone = {id(parameter) for module in changed for parameter in module.parameters()}
        fixed = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in gone)
        for norm, linear in inputs:
            if linear.bias is not None or norm.bias is not None:
                fixed += linear.out_features
        per_dimension = sum(table.num_embeddings for table in parts.embeddings)
        per_dimension += sum(linear.out_features for _, linear in inputs)
        per_dimension += sum(output.in_features + (output.bias is not None) for output in outputs)
        return cls(fixed, per_dimension, len(outputs))


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


def _rotate(model: PreTrainedModel, parts: ResidualModel, bases: Sequence[torch.Tensor], kept: int) -> None:
    """Rewrites a dense model in place: norms folded, hidden states rotated and cut."""
    basis = bases[0]
    for table in parts.embeddings:
        entry = entry_of(basis, parts.blocks[0].norm)
        table.weight = nn.Parameter((table.weight.double() @ entry.to(table.weight.device)).to(table.weight.dtype))
        table.embedding_dim = kept
    shortcuts = []
    for i, block in enumerate(parts.blocks):
        for linear in block.inputs:
            _fold_input(linear, block.norm, basis)
        if block.output is not None:
            following = bases[i + 1]
            entry = entry_of(following, parts.blocks[i + 1].norm).to(block.output.weight.device)
            _rotate_output(block.output, entry)
            shortcut = entry.T @ basis.to(entry.device)  # of a linear layer: the transpose of the paper's matrix
            shortcuts.append(linear_of(shortcut.to(block.output.weight.dtype)))
            basis = following
    _replace_modules(model, parts, shortcuts)


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
    # New parameters, not new data of the old ones: a head may be tied to embeddings that are rotated otherwise.
    dtype = linear.weight.dtype
    linear.weight = nn.Parameter(weight.to(dtype))
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.to(dtype)))
    linear.out_features, linear.in_features = weight.shape


def _replace_modules(model: PreTrainedModel, parts: ResidualModel, shortcuts: Sequence[nn.Module]) -> None:
    for i, (attention, ffn) in enumerate(zip(parts.attentions, parts.ffns, strict=True)):
        norms = (block.norm.without_scale() for block in parts.blocks[2 * i : 2 * i + 2])
        layer = SlicedLayer(next(norms), attention, shortcuts[2 * i], next(norms), ffn, shortcuts[2 * i + 1])
        parts.layers[i] = layer.eval()
    setattr(model.get_decoder(), parts.final_norm, parts.blocks[-1].norm.without_scale())
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
