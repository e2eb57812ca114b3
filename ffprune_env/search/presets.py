"""Settings of a search by name: what worked best here, a quick look, and the paper's own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from ffprune_env.search.settings import SearchSettings

Preset = Literal["default", "quick", "paper"]

#: What differs from the defaults of the settings; what those are worth, one changed at a time: docs/presets.md.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The whole way in two minutes: the cheapest ranking, little text, and a start of two steps.
    "quick": {
        "criterion": "wanda",
        "search_windows": 1,
        "final_windows": 2,
        "curve_windows": 8,
        "init_steps": 2,
        "calibration_windows": 12,
    },
    # Which of these are printed in the paper, and where the others come from: docs/paper.md.
    "paper": {
        "calibration": "ridge",
        "openings": 0,
        "calibration_windows": 32,
        "seq_len": 2048,
        "reward_model": "cut",
        "channels_per_group": 1,
        "heads": "single",
        "criterion": "wanda",
        "mapping": "paper",
        "a_min": None,
        "action_scale": 1.0,
        "action_bound": 16.0,
        "evaluations": 1000,
        "k": 0.01,
        "t0": 500.0,
        "ramp_sparsity": True,
        "fresh_windows": False,
        "search_windows": 8,
        "final_windows": 8,
        "init": "none",
        "network": "mlp",
        "learning_rate": 1e-4,
        "rollout": 16,
        "n_epochs": 20,
        "clip_range": 0.2,
        "log_std_init": 0.0,
        "finalists": 2,
    },
}

#: The same for a run: TensorBoard shows what the policy's mean is worth while it is trained, and a quick look is
#: compared with nothing.
RUN_PRESETS: dict[str, dict[str, Any]] = {name: {**settings, "eval_every": None} for name, settings in PRESETS.items()}
RUN_PRESETS["quick"] |= {"baselines": False}


def search_settings(preset: Preset) -> SearchSettings:
    """The settings of a search that a preset stands for, without those of what it measures with."""
    names = {field.name for field in fields(SearchSettings)}
    return SearchSettings(**{name: value for name, value in PRESETS[preset].items() if name in names})
