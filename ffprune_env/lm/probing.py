"""Two models, or two ways through one, compared on a few tokens: nothing of the model is changed by it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffprune_env.lm.batches import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Relative error of logits that rounding explains; what is wrong is off by more.
ROUNDING = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-3, torch.float64: 1e-9}


def probe_tokens(model: PreTrainedModel, shape: tuple[int, int]) -> torch.Tensor:
    """Random tokens, the same at every call, on the CPU: int64 of the given shape."""
    known = model.get_input_embeddings().num_embeddings
    return torch.randint(min(3, known - 1), known, shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def calm(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards modules train that did, and random numbers go on as they would."""
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices), torch.no_grad(), evaluating(model):
        yield


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """‖got - expected‖ / ‖expected‖ over what is finite in ``expected``: a model may forbid tokens by -inf."""
    finite = torch.isfinite(expected)
    wanted = expected[finite].double()
    return float((got.to(expected.device)[finite].double() - wanted).norm() / wanted.norm().clamp(min=1e-300))


def usual_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The median of the relative errors of windows, [n, T, vocabulary] each.

    A pruned model can be at the edge of another course behind a token or two (an attention sink, or none), and there
    the rounding of narrow numbers decides. A model that is another one is so in every window.
    NaN in any of them is NaN.
    """
    errors = [relative_error(a, b) for a, b in zip(got, expected, strict=True)]
    return median(errors) if not any(map(math.isnan, errors)) else math.nan
