"""What a search leaves in TensorBoard when it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Figure as FigureRecord
from stable_baselines3.common.logger import HParam

from ffprune_env.run.results import Measured


def log_final(policy: PPO, settings: Mapping[str, Any], results: Measured, retention: Figure, where: str) -> None:
    """Records final perplexities, hyperparameters, and what was kept of every layer.

    Args:
        policy: the trained policy, whose logger writes them.
        settings: of the run; numbers and words among them become hyperparameters.
        results: of every policy.
        retention: the figure of what they keep.
        where: the tag that the perplexities stand under.
    """
    final: dict[str, float] = {}
    for suffix, measured in (("", results.plain), ("_calibrated", results.calibrated)):
        final |= {f"{where}/search_ppl_{name}{suffix}": x.search_ppl for name, x in measured.items()}
        final |= {f"{where}/test_ppl_{name}{suffix}": x.test_ppl for name, x in measured.items()}
    for key, value in final.items():
        policy.logger.record(key, value)
    hyperparameters = {key: value for key, value in settings.items() if isinstance(value, int | float | str)}
    elsewhere = ("stdout", "log", "json", "csv")
    policy.logger.record("hparams", HParam(hyperparameters, final), exclude=elsewhere)
    policy.logger.record(f"retention/{where}", FigureRecord(retention, close=False), exclude=elsewhere)
    policy.logger.dump(policy.num_timesteps)  # this also writes what the last policy update recorded
