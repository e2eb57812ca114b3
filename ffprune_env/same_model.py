"""Whether two perplexities can be those of one model: what rounding may make of them, and what is an error."""

from __future__ import annotations

import math

import torch

# Of the spacing of numbers next to 1. Other orders of heads and channels, other kernels and other devices round
# otherwise. The default model in bfloat16 was 0.02 to 0.11 of it apart, where every token's loss is up to 8 of it.
_SPACINGS = 4.0
# What is summed in float32, or rounded to TF32's ten bits by a GPU that was told to, is off by no more than this.
_LEAST = 1e-3


def rounding_tolerance(dtype: torch.dtype) -> float:
    """How far apart the logarithms of two perplexities of one model may be, by the dtype of its weights.

    0.03 for bfloat16, 0.004 for float16, 0.001 for float32 and finer.
    """
    return max(_SPACINGS * torch.finfo(dtype).eps, _LEAST)


def require_same_model(written: float, measured: float, tolerance: float, what: str) -> None:
    """Raises ValueError unless a model that was written has the perplexity of the one that was measured.

    Args:
        written: perplexity of what was read back; infinity if it collapsed.
        measured: perplexity of the model in memory, on the same windows.
        tolerance: of the difference of their logarithms, which are mean losses, such as :func:`rounding_tolerance`.
        what: was written, for the message, such as ``"runs/x/model, on test text"``.
    """
    if written == measured:  # both are infinite, perhaps
        return
    apart = abs(math.log(written) - math.log(measured)) if min(written, measured) > 0 else math.nan
    if not apart <= tolerance:
        raise ValueError(
            f"what was written is not what was measured: {what}, has perplexity {written:.4f}, the model measured has "
            f"{measured:.4f}; rounding makes no more than {math.expm1(tolerance):.2%} of difference: do not use it"
        )
