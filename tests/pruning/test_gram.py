"""Sums of products over tokens are exact, whatever unit makes them."""

from __future__ import annotations

import pytest
import torch

from ffprune_env.pruning.gram import add_products

BACKENDS = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)


def relative_error(dtype, device="cpu"):
    """Of a sum over many tokens, against float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4096, n, generator=generator).to(device, dtype) for n in (96, 48))
    total = torch.zeros(96, 48, device=device)
    add_products(total, a, b)
    exact = a.double().T @ b.double()
    return float((total - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_are_those_of_float32(dtype):
    assert relative_error(dtype) < 3e-6  # bfloat16 products would be off by 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_are_those_of_float32_on_a_gpu(dtype):
    assert relative_error(dtype, "cuda") < 3e-6


def test_float64_stays_float64():
    a = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = torch.ones(8, 8, dtype=torch.float64)
    add_products(total, a, a)
    torch.testing.assert_close(total, 1 + a.T @ a, rtol=1e-14, atol=1e-14)


def test_products_of_others_are_as_exact_as_before():
    before = [place.fp32_precision for place in BACKENDS]
    add_products(torch.zeros(4, 4), *[torch.ones(8, 4, dtype=torch.bfloat16)] * 2)
    with pytest.raises(RuntimeError):
        add_products(torch.zeros(4, 4), *[torch.ones(8, 5, dtype=torch.bfloat16)] * 2)
    assert [place.fp32_precision for place in BACKENDS] == before
    a = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert float((a @ a - a.double() @ a.double()).abs().max()) < 1e-4
