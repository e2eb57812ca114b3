"""Searches with --a-min 0, in which units may go entirely, from the flag to the files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_runs import run_main, settings

import ffprune_env as ff


@pytest.mark.parametrize("init", ["fisher", "none"])
def test_a_search_that_may_drop_units_writes_the_model_that_it_measured(
    ppo_script, tiny_folder, text_file, tmp_path, init
):
    run = tmp_path / "run"
    flags = settings(tiny_folder, text_file, run, **{"a-min": 0, "sparsity": 0.6, "init": init})
    assert run_main(ppo_script, flags) == 0
    chosen = json.loads((run / "best.json").read_text())["chosen"]
    assert 0 in chosen["kept"]  # of 3 layers of 4 heads at 60 %
    assert chosen["sparsity"] >= 0.6
    model = ff.load_pruned(run / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == chosen["params"]
    gone = np.array(chosen["kept"]).reshape(-1, 2) == 0
    assert [n == 0 for n in model.config.num_attention_heads_per_layer] == gone[:, 0].tolist()
    assert [n == 0 for n in model.config.intermediate_size_per_layer] == gone[:, 1].tolist()
