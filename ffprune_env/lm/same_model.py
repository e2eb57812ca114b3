"""Whether two perplexities can be those of one model: what rounding may make of them, and what is an error."""

from __future__ import annotations

import math

import torch

# Heads and channels in another order, another kernel or another device round otherwise. With its groups in other orders
# the default model gave losses of single tokens that differ by 8 spacings of the numbers next to 1 (standard deviation;
# bfloat16 and float16 alike), so the mean over as few as 64 tokens differs by one. This is four times that.
_SPACINGS = 4.0
# In float32 the same losses differ by 5e-6, of which kernels and devices make more.
_LEAST = 1e-4


def rounding_tolerance(dtype: torch.dtype) -> float:
    """How far apart the logarithms of two perplexities of one model may be, by the dtype of its weights.

    0.03 for bfloat16, 0.004 for float16, 0.0001 for float32 and finer.
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
