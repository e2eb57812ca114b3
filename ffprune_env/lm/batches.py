"""How many windows go through a model at once: chosen by where it runs, and halved where memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Tokens per forward pass that keep the processor busy; more only take memory. A streamed model, whose parameters are on
# "meta", takes as many as a GPU: all of its layers are read again for every pass.
_TOKENS = {"cpu": 2048}
_TOKENS_ELSEWHERE = 16384

# Tokens per forward pass that fitted where more did not: a limit for windows of any length.
_limits: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def in_fitting_batches(model: nn.Module, windows: torch.Tensor, batch_size: int | None, work: Callable[[int], T]) -> T:
    """Calls ``work`` with a number of windows per forward pass that fits into memory.

    The model neither drops out nor skips layers meanwhile. Where memory runs out the number is halved, which is logged,
    and the work begins again. What a model was found to be too large for is not tried with it again.

    Args:
        model: the model that the windows go through.
        windows: int64 [n, seq_len].
        batch_size: windows per forward pass, at the most; None chooses by device and seq_len.
        work: takes that number and does all windows.

    Raises:
        RuntimeError: memory runs out with a single window.
    """
    while True:
        size = fitting_size(model, windows, batch_size)
        try:
            with evaluating(model):
                return work(size)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Out of the handler, so that nothing holds on to what the failed pass had made.
        _limits[model] = size // 2 * windows.shape[1]
        release_memory()
        logger.warning("out of memory with %d windows at once: going on with %d", size, size // 2)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no skipped layers inside, whatever mode the model is in; afterwards modules train that did."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def fitting_size(model: nn.Module, windows: torch.Tensor, batch_size: int | None) -> int:
    """Windows per forward pass, no more than ``batch_size`` and no more than fitted into memory before.

    Arguments as for :func:`in_fitting_batches`.
    """
    if batch_size is None:
        device = next(model.parameters()).device.type
        batch_size = max(1, _TOKENS.get(device, _TOKENS_ELSEWHERE) // windows.shape[1])
    fitted = _limits.get(model)
    return min(batch_size, len(windows), batch_size if fitted is None else max(1, fitted // windows.shape[1]))


def release_memory() -> None:
    """Gives back what nothing holds on to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
