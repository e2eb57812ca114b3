"""Whether the layers of a model can run without their attention, or their FFN, as if it gave 0."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffprune_env.budget.units import UnitKind
from ffprune_env.lm.batches import is_out_of_memory
from ffprune_env.lm.context import context_length
from ffprune_env.lm.head import decoder_outputs
from ffprune_env.lm.one_line import one_line
from ffprune_env.lm.probing import ROUNDING, calm, probe_tokens, relative_error

if TYPE_CHECKING:
    from ffprune_env.pruning.prunable import PrunableModel

_TOKENS = 32


def why_none_can_go(prunable: PrunableModel, kind: UnitKind) -> str:
    """What is wrong with a model whose units of a kind are left out; nothing if nothing is.

    On a few tokens the model runs without any of them, and with what they give set to 0: that is the same.

    Args:
        prunable: the model, dense or pruned now.
        kind: of the units.
    """
    model, tokens = prunable.model, probe_tokens(prunable.model, (1, min(_TOKENS, context_length(prunable.model))))
    layouts = [layout for layout in prunable.layouts if layout.unit.kind == kind]
    with calm(model):
        with ExitStack() as hooks:
            for layout in layouts:
                hooks.callback(layout.output.register_forward_hook(_silence).remove)
            expected = decoder_outputs(model, tokens)
        try:
            with ExitStack() as left:
                for layout in layouts:
                    left.enter_context(layout.block.left_out())
                off = relative_error(decoder_outputs(model, tokens), expected)
        except Exception as error:  # code that finds another module than it counts on can raise anything
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            return one_line(error)
    return "" if off <= ROUNDING[expected.dtype] else f"its hidden states are off by {off:.2g} of their size"


def _silence(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(output)
