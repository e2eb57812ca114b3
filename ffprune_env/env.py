"""PruneBanditEnv: how much of each layer to keep, as a single-step Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from ffprune_env.budget.allocation import Allocation, check_sparsity, group_bounds
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.mapping import MappingName, allocate
from ffprune_env.evaluators.objectives.reward import RewardKind, mix_of, written

if TYPE_CHECKING:
    from ffprune_env.evaluators.protocol import DivergenceEvaluator, Evaluator, Windows

Observation = npt.NDArray[np.float32]

#: A reward below this is a collapsed model (docs/design.md, 2).
COLLAPSE_REWARD = 1e-4
_OPTIONS = ("sparsity", "n_samples")


class PruneBanditEnv(gym.Env[Observation, npt.NDArray[np.float32]]):
    """A contextual bandit: given a target sparsity, score every unit of a language model; good scores are rewarded.

    ## Description

    The decoder of a language model has N = 2 · layers prunable units, the attention and the FFN of every layer; fewer
    where an attention has to stay whole. One episode is one step. The observation is the target sparsity σ, the
    fraction of the units' parameters to remove; the action is one score per unit; the step maps the scores to whole
    heads and channels that meet the budget, prunes the model, measures its perplexity on the first ``n_samples``
    windows of search text, and makes it dense again.

    ## Action space

    ``Box(-action_bound, action_bound, (N,), float32)``: the scores of attention 0, ffn 0, attention 1, ffn 1, ...,
    divided by ``action_scale``. The higher the score, the more of the unit stays. Actions outside the box are allowed,
    non-finite ones are not. In the paper scores are any real numbers; algorithms of Stable-Baselines3 refuse boxes
    without bounds, and clip what they sample to those that there are.

    ## Observation space

    ``Box(0, 1, (1,), float32)``: the target sparsity of the step to come.

    ## Rewards

    ``reward="ppl"``: PPL_dense / PPL, both on the same windows. ``reward="kl"``: exp(-KL), with the mean divergence of
    the pruned model's next-token distribution from the dense model's, which every token of the vocabulary has a say in
    and not only the one that follows. ``tasks``, ``chat``, and mixes: exp(dense loss - loss), of the margins of right
    answers, of the answers of conversations, or of a weighted sum. All are 1 for a model as good as the dense one, and
    go towards 0 as it gets worse. The reward is exactly 0 if the pruned model has *collapsed*: what is measured is not
    finite, or the reward would be below 1e-4. A function of model and tokenizer is taken as it is.

    ## Starting state

    The target sparsity given to the constructor, or the one set last by :meth:`set_task` before the reset. What
    ``reset(options={"sparsity": ..., "n_samples": ...})`` asks for holds for the episode that it starts.

    ## Episode end

    Every episode terminates after one step and is never truncated. A second step raises ``ResetNeeded``.

    ## Information

    | key | what |
    |---|---|
    | ``ppl``, ``dense_ppl`` | perplexity of the pruned and of the dense model (``inf`` if not finite), or exp(loss) |
    | ``target_sparsity`` | σ asked for |
    | ``sparsity`` | fraction of Σ w removed: never below the target, above it by as little as whole groups allow |
    | ``n_samples`` | windows measured on |
    | ``windows`` | int64, which they were, if they were set by index |
    | ``kl`` | mean KL(dense ‖ pruned) in nats, with ``reward="kl"`` only |
    | ``collapsed`` | whether the reward was set to 0 |
    | ``scores`` | float64 (N,), the action times ``action_scale`` |
    | ``rates`` | float64 (N,), fraction of each unit's groups that stays |
    | ``kept`` | int64 (N,), groups of each unit that stay |

    ``reset`` gives ``target_sparsity`` and ``n_samples``.

    ## Arguments

    ``gym.make("ffprune/PruneBandit-v0", model="smollm2-135m", text="python-docs", sparsity=0.2, ...)`` takes the
    arguments below, but for ``evaluator``, and those of :func:`ffprune_env.load_evaluator`. Environments of one process
    that are made with the same arguments of ``load_evaluator`` share one model.

    Args:
        evaluator: what to measure with; its units fix N.
        sparsity: target sparsity, in the range that the bounds allow.
        n_samples: windows per measurement, 1 to ``evaluator.max_samples``; None takes all.
        a_min: lowest retention rate of a unit; lower is freer, but a unit near 0 can ruin the model.
        a_max: highest retention rate.
        mapping: ``"waterfill"`` (magnitudes count), ``"paper"`` (Algorithm 1 as printed: only the order counts) or
            ``"greedy"`` (the same without its ties and its rounding).
        action_scale: what actions are multiplied by to give scores.
        action_bound: half the width of the action space; wide enough, it clips nothing.
        reward: ``"ppl"``; ``"kl"``, for which the evaluator must compare with the dense model; or, of a language
            model, what else :func:`~ffprune_env.evaluators.objectives.reward.parse_reward` reads, or a function of
            model and tokenizer to a number, the higher the better.
        render_mode: None; there is nothing to see.

    Raises:
        TypeError: it is to be rendered.
        ValueError: an argument is out of its range.

    ## Version history

    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        evaluator: Evaluator,
        sparsity: float = 0.2,
        n_samples: int | None = None,
        a_min: float = 0.2,
        a_max: float = 1.0,
        mapping: MappingName = "waterfill",
        action_scale: float = 3.0,
        reward: str | Callable[..., Any] = "ppl",
        action_bound: float = 1.0,
        render_mode: None = None,
    ) -> None:
        require_nothing_rendered(render_mode)
        self.render_mode = None
        mix = mix_of(reward)
        self.reward_kind: RewardKind = mix.kind
        if not mix.of_text:
            rewarding = getattr(evaluator, "rewarding", None)
            if rewarding is None:
                raise ValueError(f"reward {reward!r} needs a language model, not {type(evaluator).__name__}")
            evaluator = cast("Evaluator", rewarding(reward))
        elif getattr(evaluator, "stands_in", False) and (there := getattr(evaluator, "rewarded", mix)) != mix:
            raise ValueError(
                f"the evaluator measures {written(there)!r}, not {reward!r}: give that as reward, or another evaluator"
            )
        if mix.kind == "kl" and not hasattr(evaluator, "compare"):
            raise ValueError(f"reward 'kl' needs an evaluator with compare(), which {type(evaluator).__name__} lacks")
        for name, value in (("action_scale", action_scale), ("action_bound", action_bound)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        self.evaluator = evaluator
        self.a_min, self.a_max, self.mapping, self.action_scale = a_min, a_max, mapping, action_scale
        group_bounds(evaluator.units, a_min, a_max)
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-action_bound, action_bound, (len(evaluator.units),), np.float32)
        self._next_task: tuple[float, Windows] = (sparsity, evaluator.max_samples if n_samples is None else n_samples)
        self.set_task(*self._next_task)
        self._task: tuple[float, Windows] | None = None  # of the episode under way

    def set_task(self, sparsity: float | None = None, n_samples: Windows | None = None) -> None:
        """Sets what the episodes after the next reset ask for; what is not given stays.

        The episode under way keeps the sparsity that its observation showed.

        Args:
            sparsity: target sparsity.
            n_samples: windows of search text per measurement: so many, the first, or further ones of the evaluator's by
                their indices.

        Raises:
            ValueError: out of range; nothing changes. Which indices there are is the evaluator's to know.
        """
        self._next_task = self._checked(sparsity, n_samples)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: of the environment, which draws nothing.
            options: ``sparsity`` and ``n_samples`` for this episode alone, as :meth:`set_task` takes them.

        Raises:
            ValueError: an option is out of range, or there is no such option; the episode before is as it was.
        """
        asked = dict(options or {})
        if unknown := asked.keys() - set(_OPTIONS):
            raise ValueError(f"reset knows no option {min(map(str, unknown))!r}; allowed are {', '.join(_OPTIONS)}")
        task = self._checked(**asked)
        super().reset(seed=seed)
        self._task = task
        return self._observe(self._task[0]), {"target_sparsity": self._task[0], **_said(self._task[1])}

    @property
    def sparsity(self) -> float:
        """The target sparsity of the episode under way; of the next one between two episodes."""
        return (self._task or self._next_task)[0]

    def would_measure(self, action: npt.NDArray[np.float32]) -> tuple[IntArray, Windows]:
        """What :meth:`step` with this action would measure: the groups kept, and on which windows.

        Raises:
            ResetNeeded: the episode is over, or none was started.
            ValueError: the action has the wrong length or is not finite.
        """
        if self._task is None:
            raise ResetNeeded("an episode of PruneBandit is one step: call reset() before every step()")
        return self._allocate(action, self._task[0]).kept, self._task[1]

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Prunes as the action says and measures; see the class for what comes back.

        Raises:
            ResetNeeded: the episode is over, or none was started.
            ValueError: the action has the wrong length or is not finite.
        """
        if self._task is None:
            raise ResetNeeded("an episode of PruneBandit is one step: call reset() before every step()")
        sparsity, n_samples = self._task
        allocation = self._allocate(action, sparsity)
        self._task = None
        reward, measured = measure_reward(self.evaluator, allocation.kept, n_samples, self.reward_kind)
        info = {
            "target_sparsity": sparsity,
            "sparsity": allocation.sparsity,
            **_said(n_samples),
            "collapsed": reward == 0 and self.reward_kind != "value",
            "scores": self._scores(action),
            "rates": allocation.rates,
            "kept": allocation.kept,
            **measured,
        }
        return self._observe(sparsity), reward, True, False, info

    def _checked(self, sparsity: float | None = None, n_samples: Windows | None = None) -> tuple[float, Windows]:
        """A task; what is not given is as in the next one. ValueError if it is out of range."""
        wanted = self._next_task[0] if sparsity is None else float(sparsity)
        samples = self._next_task[1] if n_samples is None else n_samples
        samples = tuple(map(int, samples)) if isinstance(samples, tuple) else int(samples)
        check_sparsity(wanted, self.evaluator.units, self.a_min, self.a_max)
        if isinstance(samples, int) and not 1 <= samples <= self.evaluator.max_samples:
            raise ValueError(f"n_samples must be between 1 and {self.evaluator.max_samples}, got {samples}")
        if isinstance(samples, tuple) and (not samples or len(set(samples)) < len(samples) or min(samples) < 0):
            raise ValueError(f"windows must be different indices from 0, at least one, got {samples}")
        return wanted, samples

    def _scores(self, action: npt.NDArray[np.float32]) -> FloatArray:
        return np.asarray(action, dtype=np.float64) * self.action_scale

    def _allocate(self, action: npt.NDArray[np.float32], sparsity: float) -> Allocation:
        bounds = {"a_min": self.a_min, "a_max": self.a_max}
        return allocate(self._scores(action), sparsity, self.evaluator.units, **bounds, mapping=self.mapping)

    @staticmethod
    def _observe(sparsity: float) -> Observation:
        return np.array([sparsity], dtype=np.float32)


def require_nothing_rendered(render_mode: object) -> None:
    """Raises TypeError if there is a render mode.

    Stable-Baselines3 asks for one whenever it makes an environment by its name, and after a TypeError does without.
    """
    if render_mode is not None:
        raise TypeError(f"there is nothing to render: render_mode must be None, got {render_mode!r}")


def _said(windows: Windows) -> dict[str, Any]:
    """What infos say of windows; of given indices which they are, too."""
    if isinstance(windows, int):
        return {"n_samples": windows}
    return {"n_samples": len(windows), "windows": np.array(windows, dtype=np.int64)}


def measure_reward(
    evaluator: Evaluator, kept: IntArray, n_samples: Windows, kind: RewardKind
) -> tuple[float, dict[str, float]]:
    """What an allocation is rewarded with.

    Args:
        evaluator: measures; for ``kl`` it must be able to compare.
        kept: int [N], groups kept per unit.
        n_samples: windows of search text, how many or which.
        kind: how a reward is made of it.

    Returns:
        The reward, 0 if the model collapsed unless it is a value, and what was measured: ``ppl``, ``dense_ppl`` and,
        for ``kl``, ``kl``.
    """
    dense_ppl = evaluator.dense(n_samples)
    measured = {}
    if kind == "kl":
        ppl, measured["kl"] = cast("DivergenceEvaluator", evaluator).compare(kept, n_samples)
        reward = math.exp(-measured["kl"])
    else:
        ppl = evaluator.measure(kept, n_samples)
        if kind == "value":  # as the function said it, before exp was taken of it
            return round(-math.log(ppl), 12), {"ppl": ppl, "dense_ppl": dense_ppl}
        reward = dense_ppl / ppl
    if not (math.isfinite(ppl) and math.isfinite(dense_ppl) and reward >= COLLAPSE_REWARD and reward < math.inf):
        reward = 0.0
    return reward, {"ppl": ppl if math.isfinite(ppl) else math.inf, "dense_ppl": dense_ppl, **measured}
