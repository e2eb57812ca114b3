"""What a run leaves in TensorBoard beside the scalars of its search: figures, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure as FigureRecord
from stable_baselines3.common.logger import HParam, Logger, configure

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.run.cost_log import CostLog
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.plots import retention_plot
from ffprune_env.run.results import Measured

# Histograms and images make sense to TensorBoard alone.
_NOT_TENSORBOARD = ("stdout", "log", "json", "csv")


class RetentionCallback(BaseCallback):
    """Logs what the last sample of every rollout kept, under ``retention/``: a histogram, and a plot over layers.

    Args:
        units: the units of the model.
    """

    def __init__(self, units: tuple[PruneUnit, ...]) -> None:
        super().__init__()
        self.units = units
        self._rates: FloatArray | None = None

    def _on_step(self) -> bool:
        self._rates = self.locals["infos"][-1]["rates"]
        return True

    def _on_rollout_end(self) -> None:
        if self._rates is None:
            return
        self.logger.record("retention/rates", torch.from_numpy(self._rates), exclude=_NOT_TENSORBOARD)
        figure = retention_plot(self.units, {"last sample": self._rates})
        self.logger.record("retention/layers", FigureRecord(figure, close=False), exclude=_NOT_TENSORBOARD)


class CostCallback(BaseCallback):
    """Keeps what the run has cost so far, and logs it after every rollout: ``cost/tokens``, ``cost/device_hours``.

    Args:
        costs: of the run.
        after: evaluations that are made again, from samples, and whose cost is there already.
    """

    def __init__(self, costs: CostLog, after: int = 0) -> None:
        super().__init__()
        self.costs, self.after = costs, after

    def _on_step(self) -> bool:
        if self.num_timesteps > self.after:
            self.costs.save(self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        cost = self.costs.by(self.num_timesteps)
        self.logger.record("cost/tokens", cost.forward_tokens)
        self.logger.record("cost/device_hours", cost.device_hours)


@contextmanager
def logging_to(run: RunFolder) -> Iterator[Logger]:
    """A logger whose events tell the whole search: where that ends well, those of a process before it go.

    Args:
        run: its folder.
    """
    before = run.events()
    yield configure(str(run.tensorboard), ["tensorboard"])
    for events in before:
        events.unlink()


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
    policy.logger.record("hparams", HParam(hyperparameters, final), exclude=_NOT_TENSORBOARD)
    policy.logger.record(f"retention/{where}", FigureRecord(retention, close=False), exclude=_NOT_TENSORBOARD)
    policy.logger.dump(policy.num_timesteps)  # this also writes what the last policy update recorded
