"""The paper's preset by the command line: its lowest rate goes with the sparsity, however that is asked for."""

from __future__ import annotations

import pytest
from tiny_runs import best_of, run_main, samples_of, settings


@pytest.fixture
def searched(ppo_script, tiny_folder, text_file, tmp_path):
    """Runs the script on a tiny model: what it found, and all samples."""

    def run(name, *flags):
        folder = tmp_path / name
        words = [*settings(tiny_folder, text_file, folder), "--no-baselines", "--no-save-model", *flags]
        assert run_main(ppo_script, words) == 0
        return best_of(folder), samples_of(folder)

    return run


def lowest_of(samples):
    return min(min(sample["rates"]) for sample in samples)


@pytest.mark.parametrize("asked", [("--sparsity", "0.3"), ("--budget", "parameters", "10%")], ids=" ".join)
def test_no_unit_loses_much_more_than_the_mean(searched, asked):
    best, samples = searched("run", "--preset", "paper", *asked)
    assert lowest_of(samples) >= 1 - best["target_sparsity"] - 0.1
    assert lowest_of(samples) < 1 - best["target_sparsity"]


def test_another_sparsity_with_the_settings_of_a_run_has_another_lowest_rate(searched, tmp_path):
    searched("first", "--preset", "paper", "--sparsity", "0.2")
    _, samples = searched("second", "--config", str(tmp_path / "first" / "config.yaml"), "--sparsity", "0.5")
    assert 0.4 <= lowest_of(samples) < 0.5
