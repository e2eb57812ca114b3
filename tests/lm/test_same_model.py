"""What rounding may make of a perplexity, and what is another model."""

from __future__ import annotations

import math

import pytest
import torch

from ffprune_env.lm.same_model import require_same_model, rounding_tolerance

DTYPES = [(torch.float64, 1e-4), (torch.float32, 1e-4), (torch.float16, 0.0039), (torch.bfloat16, 0.03125)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_the_tolerance_of_every_dtype(dtype, tolerance):
    assert rounding_tolerance(dtype) == pytest.approx(tolerance, rel=0.01)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [dtype for dtype, _ in DTYPES])
def test_within_it_is_rounding_and_beyond_it_another_model(dtype, sign):
    tolerance = rounding_tolerance(dtype)
    require_same_model(10.0 * math.exp(sign * 0.99 * tolerance), 10.0, tolerance, "a model, on test text")
    with pytest.raises(ValueError, match="what was written is not what was measured: a model, on test text, has"):
        require_same_model(10.0 * math.exp(sign * 1.01 * tolerance), 10.0, tolerance, "a model, on test text")


def test_what_was_seen_of_one_model_in_bfloat16_is_rounding_and_the_lost_head_is_not():
    tolerance = rounding_tolerance(torch.bfloat16)
    require_same_model(10.24, 10.25, tolerance, "model, on test text")
    with pytest.raises(ValueError, match=r"perplexity 263.0400, the model measured has 291.5800; .* 3.17% of"):
        require_same_model(263.04, 291.58, tolerance, "model, on test text")


@pytest.mark.parametrize("collapsed", [math.inf, math.nan, 0.0])
def test_a_model_that_collapsed_on_one_side_only_is_another(collapsed):
    for pair in ((collapsed, 10.0), (10.0, collapsed)):
        with pytest.raises(ValueError, match="not what was measured"):
            require_same_model(*pair, 0.03, "model, on test text")


def test_a_model_that_collapsed_on_both_sides_is_the_same():
    require_same_model(math.inf, math.inf, 0.03, "model, on test text")
