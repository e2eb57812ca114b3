"""Counts for itself what goes through a model: forward at the last FFN's output projection, backward behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from ffprune_env.lm import phases


class Witness:
    """Tokens of windows of one length, and of openings, that pass the last layer; what is tried out has another.

    Args:
        model: of the Llama kind.
        seq_len: tokens per window.

    Attributes:
        by_phase: forward tokens by the phase that they passed in, the outermost.
        backward: tokens whose gradient passed.
        deaf: counts nothing meanwhile, outside of phases that ``heard`` names.
        heard: phases that are counted all the same.
    """

    def __init__(self, model: PreTrainedModel, seq_len: int) -> None:
        self.seq_len, self.by_phase, self.backward = seq_len, Counter[str](), 0
        self.deaf, self.heard = False, ("calibration in sequence",)
        last = model.model.layers[-1]  # where nothing of the model is seen to change, and layers run one by one pass
        self._handles = last.mlp.down_proj.register_forward_hook(self._forward), last.register_forward_hook(self._back)

    @property
    def forward(self) -> int:
        return sum(self.by_phase.values())

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        self.deaf = True
        try:
            yield
        finally:
            self.deaf = False

    def _forward(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        where = phases._open[0].name if phases._open else ""
        if output.shape[-2] in (self.seq_len, 1) and (not self.deaf or where in self.heard):
            self.by_phase[where] += output.shape[:-1].numel()

    def _back(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if output.requires_grad and output.shape[-2] == self.seq_len:
            output.register_hook(lambda gradient: self._note(gradient.shape[:-1].numel()))

    def _note(self, tokens: int) -> None:
        self.backward += tokens
