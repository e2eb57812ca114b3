"""A search that does not pay stops: when the policy's mean no longer gets better where it is not rewarded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.objectives.reward import RewardKind
from ffprune_env.search.in_words import windows_in_words
from ffprune_env.search.watch import Watch

logger = logging.getLogger(__name__)


class PatienceCallback(BaseCallback):
    """Ends a search whose mean does not get better, and gives the policy its best mean back.

    Every few updates the mean is measured at every target on windows that no candidate is rewarded for; what counts is
    the mean over the targets of ln PPL, or of the divergence where ``kl`` is rewarded. Better is what beats the start
    and all means before. The windows are few, so what is told of the best is a little optimistic; the search's answer
    is chosen on others.

    Args:
        patience: updates without a better mean that end the search.
        every: updates between two looks at the mean.
        per_update: evaluations between two updates.
        watch: measures.
        starts: groups [N] that the start keeps, by target.
        mean: groups [N] that a policy's mean keeps at a target.
        kind: of reward.

    Attributes:
        stopped: whether it ended the search.
        start: that mean, of the start.
        best: of the best mean.
    """

    def __init__(
        self,
        patience: int,
        every: int,
        per_update: int,
        watch: Watch,
        starts: Mapping[float, IntArray],
        mean: Callable[[PPO, float], IntArray],
        kind: RewardKind = "ppl",
    ) -> None:
        super().__init__()
        self.patience, self.every, self.per_update = patience, every, per_update
        self.watch, self.starts, self.mean, self.kind = watch, starts, mean, kind
        self.stopped = False
        self.start = self.best = self.last = math.inf
        self._best_after = self._paid_after = self._looked_after = 0
        self._best_parameters: dict[str, torch.Tensor] = {}

    def _on_training_start(self) -> None:
        self.start = self._loss(self.starts)
        self._look(0)

    def _on_step(self) -> bool:
        rollouts, left = divmod(self.num_timesteps, self.per_update)
        updates = rollouts - 1  # what this rollout was drawn by; its own update is still to come
        if left or not updates or updates % self.every:
            return True
        self._look(updates)
        ends = self.num_timesteps >= self._ppo._total_timesteps  # by itself
        self.stopped = updates - self._paid_after >= self.patience and not ends
        return not self.stopped

    def _on_training_end(self) -> None:
        if not self.stopped:
            self._look(self.num_timesteps // self.per_update)
        self._ppo.policy.load_state_dict(self._best_parameters)
        count = f"the policy's mean and the start were measured on {self.watch.spent} windows beside the candidates"
        logger.info("patience: %s", f"{self.told()}; {count}" if self.stopped else count)

    def told(self) -> str:
        """Why the search ended, and what was measured, in one line."""
        on = windows_in_words(len(self.watch.evaluator.watch))
        return (
            f"stopped after {self.num_timesteps} evaluations, the policy's mean has not become better in "
            f"{self._looked_after - self._paid_after} rollouts; on {on} that it is not rewarded for the start loses "
            f"{self.start:.4f} nats per token, the best mean, after {self._best_after} updates, {self.best:.4f}, the "
            f"last {self.last:.4f}"
        )

    @property
    def _ppo(self) -> PPO:
        assert isinstance(self.model, PPO)
        return self.model

    def _look(self, updates: int) -> None:
        """Measures the mean, and remembers the policy if it is the best so far."""
        self.last = self._loss({target: self.mean(self._ppo, target) for target in self.starts})
        self._looked_after = updates
        self.logger.record("patience/loss_against_start", self.last - self.start)
        if self.last < self.best or not self._best_parameters:
            self.best, self._best_after = self.last, updates
            self._best_parameters = _copied(self._ppo.policy.state_dict())
            if self.last < self.start:  # a mean that only comes nearer to a better start is no reason to go on
                self._paid_after = updates

    def _loss(self, allocations: Mapping[float, IntArray]) -> float:
        return sum(self.watch.loss(kept, self.kind) for kept in allocations.values()) / len(allocations)


def _copied(parameters: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: parameter.clone() for name, parameter in parameters.items()}
