"""Cells of a comparison: kept in one folder, and read back as they were."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ffprune_env.comparison.cell import Cell, cell_name
from ffprune_env.comparison.folder import ComparisonFolder

CELL = Cell(
    "evolution", 0.25, 1, [3, 4], 0.251, 0.1, 900, 20.0, math.inf, (math.inf, math.inf), 30.0, (29.0, 31.0), 8.0, 1024,
    1.5, [(512, math.inf), (1024, 20.0)], {"boolq": 0.5, "average": 0.5},
)  # fmt: skip


def test_cells_come_back_as_they_were(tmp_path):
    folder = ComparisonFolder(tmp_path / "x", {"model": "m", "seeds": (1, 2), "ridge": 0.01})
    heuristic = replace(CELL, method="svd-llm", seed=None, kept=None, sparsity=None, calibrated_test_ppl=None,
                        calibrated_test_interval=None, test_interval=None, trace=[], zero_shot=None)  # fmt: skip
    noted = {"candidates": 17, "calibration_seconds": 0.5, "machine": {"device": "cpu", "devices": 1}}
    collapsed = replace(CELL, seed=5, held_out={"loss": math.inf, "kl": math.inf, "held": 2.0}, **noted)
    for cell in (CELL, heuristic, collapsed):
        assert folder.cell(cell.method, cell.target_sparsity, cell.seed) is None
        folder.add(cell)
        assert ComparisonFolder(tmp_path / "x", {"model": "m", "seeds": (1, 2), "ridge": 0.01}).cell(
            cell.method, cell.target_sparsity, cell.seed
        ) == cell  # fmt: skip
    assert folder.cell("evolution", 0.25, 2) is None
    assert not list((tmp_path / "x").rglob("*writing*"))


def test_a_folder_is_for_one_setting(tmp_path):
    ComparisonFolder(tmp_path, {"model": "m", "ridge": 0.01}).add(CELL)
    with pytest.raises(ValueError, match=r"was made with ridge 0.01, not 0.1: give another --out"):
        ComparisonFolder(tmp_path, {"model": "m", "ridge": 0.1})
    with pytest.raises(ValueError, match="was made with channels_per_group None, not 32"):
        ComparisonFolder(tmp_path, {"model": "m", "ridge": 0.01, "channels_per_group": 32})
    ComparisonFolder(tmp_path, {"model": "m", "ridge": 0.01, "heads": "single"})  # there was no other way before
    with pytest.raises(ValueError, match="was made with heads 'single', not 'balanced'"):
        ComparisonFolder(tmp_path, {"model": "m", "ridge": 0.01, "heads": "balanced"})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"method": "ppo"}'])
def test_a_damaged_cell_is_named(tmp_path, content):
    folder = ComparisonFolder(tmp_path, {})
    folder.add(CELL)
    (tmp_path / cell_name("ppo", 0.2, 0)).write_text(content)
    with pytest.raises(ValueError, match=r"ppo-s20-seed0\.json is damaged, remove it to measure it again"):
        folder.cell("ppo", 0.2, 0)


def test_a_dense_model_without_a_finite_perplexity_is_reported(tmp_path):
    folder = ComparisonFolder(tmp_path, {})
    folder.dense = {"units": [], "n_params": 10, "dense_test_ppl": math.inf, "dense_interval": (math.inf, math.inf)}
    comparison = folder.comparison([CELL], {})
    assert comparison.dense_test_ppl == math.inf
    assert comparison.dense_interval == (math.inf, math.inf)
    folder.dense = {**folder.dense, "dense_interval": None}  # as it is of few test windows
    assert folder.comparison([CELL], {}).dense_interval is None
    folder.write("dense.json", {"units": []})
    with pytest.raises(ValueError, match=r"dense\.json is damaged"):
        folder.comparison([CELL], {})
