"""The tables that a person reads at the end of a run, where a model collapsed."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from ffprune_env.run.over_sparsities import sparsities_table
from ffprune_env.run.results import Measured, PolicyResult
from ffprune_env.run.results_table import results_table

TEXTS = {purpose: torch.zeros((1, 8), dtype=torch.int64) for purpose in ("search", "finalists", "test")}


def result(ppl, calibration="ridge", sparsity=0.3):
    """A policy with this perplexity on test text."""
    return PolicyResult(np.array([1]), sparsity, 0.2, 10**6, calibration != "none", calibration, ppl, ppl)


def measured(uniform, chosen):
    """What a run measured, cut and calibrated."""
    every = {"dense": 10.0, "uniform": uniform, "chosen": chosen}
    plain, calibrated = ({name: result(x, how) for name, x in every.items()} for how in ("none", "ridge"))
    return Measured(plain, calibrated, "ridge", result(chosen))


def printed(table):
    """Its last column, row by row."""
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("│")]
    return [line.strip("│").split("│")[-1].strip() for line in lines]


@pytest.mark.parametrize(
    ("uniform", "chosen", "says"), [(12.5, 10.0, "-20.0%"), (math.inf, 11.0, ""), (math.inf, math.inf, ""),
                                    (12.5, math.inf, "")]
)  # fmt: skip
def test_what_collapsed_is_at_no_distance(uniform, chosen, says):
    found = measured(uniform, chosen)
    against = printed(results_table(found, TEXTS))
    assert against[2] == against[5] == against[6] == says  # cut, calibrated, from disk
    assert not any("100" in cell or "nan" in cell or "inf" in cell for cell in against)
    assert printed(sparsities_table({0.3: found, 0.4: measured(12.5, 10.0)})) == [says, "-20.0%"]
