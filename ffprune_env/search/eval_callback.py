"""What the policy's mean is worth as a search goes on, on the same windows at the same sparsity, for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.objectives.reward import RewardKind
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.watch import Watch

# Of what the candidates of a search are measured on, where nobody says how often to look.
_SHARE = 1 / 20


def rollouts_between_looks(settings: SearchSettings) -> int:
    """Rollouts between two looks at the mean: as asked for, or so many that they cost a twentieth of the candidates."""
    if settings.eval_every is not None:
        return settings.eval_every
    look = len(settings.targets) * settings.watch_windows
    return math.ceil(look / (_SHARE * settings.per_update * settings.search_windows))


class EvalCallback(BaseCallback):
    """Logs what the mean of the policy is worth: a curve without the curriculum, and without exploration, in it.

    Every few rollouts the mean is measured at every target on windows that no candidate is rewarded for, and once more
    when the search is over, by :meth:`look`. Logs under ``eval/``, or of several sparsities under ``eval_s20/`` and the
    like, the reward and what it is made of: ``ppl``, ``dense_ppl``, ``kl``.

    Args:
        every: rollouts between two looks, at least 1.
        per_update: evaluations of a rollout.
        watch: measures.
        targets: the sparsities.
        mean: groups [N] that a policy's mean keeps at a target.
        kind: of reward.
    """

    def __init__(
        self,
        every: int,
        per_update: int,
        watch: Watch,
        targets: Sequence[float],
        mean: Callable[[PPO, float], IntArray],
        kind: RewardKind,
    ) -> None:
        super().__init__()
        self.every, self.per_update = every, per_update
        self.watch, self.targets, self.mean, self.kind = watch, targets, mean, kind

    def _on_rollout_start(self) -> None:
        if self.num_timesteps // self.per_update % self.every == 0:
            self.look()

    def _on_step(self) -> bool:
        return True

    def look(self) -> None:
        """Measures the mean as it is now, and logs it."""
        assert isinstance(self.model, PPO)
        for target in self.targets:
            where = "eval" if len(self.targets) == 1 else f"eval_s{100 * target:g}"
            reward, measured = self.watch.reward(self.mean(self.model, target), self.kind)
            for name, value in {"reward": reward, **measured}.items():
                if math.isfinite(value):
                    self.logger.record(f"{where}/{name}", value)
        self.logger.dump(self.num_timesteps)
