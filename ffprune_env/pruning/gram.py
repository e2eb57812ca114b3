"""Sums of products over tokens, XᵀX above all, as fast as the hardware makes them exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Numbers whose float32 products are exact in the fast units of a device: a CPU's keep as many bits of a number as
# bfloat16 has, a GPU's (TF32) as many as float16. Both sum in float32.
_FAST = {"cpu": (torch.bfloat16,), "cuda": (torch.bfloat16, torch.float16)}


def add_products(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Adds aᵀb to a sum.

    Args:
        total: float32 [m, n], or float64.
        a: [tokens, m] in the dtype of the model, on the device of ``total``.
        b: [tokens, n] there.
    """
    exact = a.to(total.dtype)
    with _fast_products(total.device.type, a.dtype, b.dtype):
        total.addmm_(exact.T, exact if b is a else b.to(total.dtype))


@contextmanager
def _fast_products(device: str, *dtypes: torch.dtype) -> Iterator[None]:
    """Lets products of float32 matrices run in units for shorter numbers, if the numbers came from such."""
    if not all(dtype in _FAST.get(device, ()) for dtype in dtypes):
        yield
        return
    if device == "cpu":
        place, precision = torch.backends.mkldnn.matmul, "bf16"  # type: ignore[attr-defined]
    else:
        place, precision = torch.backends.cuda.matmul, "tf32"
    before = place.fp32_precision
    place.fp32_precision = precision
    try:
        yield
    finally:
        place.fp32_precision = before
