"""Settings of a search by name: what worked best here, a quick look, and the paper's own."""

from __future__ import annotations

from typing import Any, Literal

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
    "paper": {
        "calibration": "ridge",
        "reward_model": "cut",
        "channels_per_group": 1,
        "criterion": "wanda",
        "mapping": "greedy",
        "evaluations": 1000,
        "k": 0.01,
        "t0": 500.0,
        "ramp_sparsity": True,
        "fresh_windows": False,
        "final_windows": 4,
        "init": "none",
        "network": "mlp",
        "learning_rate": 1e-4,
        "rollout": 64,
        "n_epochs": 10,
        "clip_range": 0.2,
        "log_std_init": 0.0,
    },
}
