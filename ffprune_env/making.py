"""What ``gym.make`` and ``gym.make_vec`` call: environments from names and numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ffprune_env.env import PruneBanditEnv, require_nothing_rendered
from ffprune_env.evaluators.surrogate import SurrogateEvaluator

_shared_evaluators: WeakValueDictionary[tuple[tuple[str, Any], ...], Any] = WeakValueDictionary()
_ENV_ARGUMENTS = ("a_min", "a_max", "mapping", "action_scale", "reward", "action_bound", "render_mode")


def make_prune_bandit(
    model: str = "smollm2-135m",
    text: str = "auto",
    sparsity: float = 0.2,
    n_samples: int | None = None,
    **arguments: Any,
) -> PruneBanditEnv:
    """Builds the environment from names alone; the entry point of ``ffprune/PruneBandit-v0``.

    Args:
        model: see :func:`ffprune_env.load_model`.
        text: see :func:`ffprune_env.load_windows`, and :func:`ffprune_env.load_evaluator` for ``auto``.
        sparsity: target sparsity.
        n_samples: windows of search text that a step measures on until ``set_task`` asks for others. None: all
            ``search_windows``. If ``search_windows`` is not given, and by default there are fewer, the evaluator gets
            ``n_samples`` of them.
        **arguments: further arguments of :class:`PruneBanditEnv` and :func:`ffprune_env.load_evaluator`.
    """
    from ffprune_env.evaluators.build import load_evaluator
    from ffprune_env.evaluators.settings import EvaluatorSettings
    from ffprune_env.texts.default_text import text_for

    text = text_for(model, text)
    of_env = _of_env(arguments)
    by_default = EvaluatorSettings().search_windows
    # Whoever asks for no more than there are by default shares the model with those who ask for all of them.
    enough = n_samples is None or 1 <= n_samples <= by_default
    arguments.setdefault("search_windows", by_default if enough else n_samples)
    key = (("model", model), ("text", text), *sorted(arguments.items()))
    evaluator = _shared_evaluators.get(key)
    if evaluator is None:
        evaluator = _shared_evaluators[key] = load_evaluator(model, text, **arguments)
    return PruneBanditEnv(evaluator, sparsity, n_samples, **of_env)


def make_surrogate_bandit(
    sparsity: float = 0.2, n_samples: int | None = None, n_layers: int = 12, seed: int = 0, **arguments: Any
) -> PruneBanditEnv:
    """Builds the environment over an invented model; the entry point of ``ffprune/PruneBanditSurrogate-v0``.

    It is made in milliseconds and answers in microseconds, so that algorithms can be tried before a model is loaded.

    Args:
        sparsity: target sparsity.
        n_samples: windows that a step claims to measure on; None claims all.
        n_layers: decoder layers; N is twice that.
        seed: of the invented model: how much its units matter, and what windows differ by.
        **arguments: further arguments of :class:`PruneBanditEnv` and
            :meth:`~ffprune_env.evaluators.surrogate.SurrogateEvaluator.synthetic`.
    """
    of_env = _of_env(arguments)
    evaluator = SurrogateEvaluator.synthetic(n_layers, seed=seed, **arguments)
    return PruneBanditEnv(evaluator, sparsity, n_samples, **of_env)


def make_prune_bandits(num_envs: int = 1, **arguments: Any) -> SyncVectorEnv:
    """Several of them over one model; what ``gym.make_vec("ffprune/PruneBandit-v0", num_envs=...)`` calls.

    Args:
        num_envs: how many.
        **arguments: of :func:`make_prune_bandit`.
    """
    return _side_by_side(lambda: make_prune_bandit(**arguments), num_envs)


def make_surrogate_bandits(num_envs: int = 1, **arguments: Any) -> SyncVectorEnv:
    """Several of them; what ``gym.make_vec("ffprune/PruneBanditSurrogate-v0", num_envs=...)`` calls.

    Args:
        num_envs: how many.
        **arguments: of :func:`make_surrogate_bandit`.
    """
    first = make_surrogate_bandit(**arguments)
    tasks = {name: arguments[name] for name in ("sparsity", "n_samples") if name in arguments}
    return _side_by_side(lambda: PruneBanditEnv(first.evaluator, **tasks, **_of_env(dict(arguments))), num_envs)


def _side_by_side(make: Callable[[], PruneBanditEnv], num_envs: int) -> SyncVectorEnv:
    # In Gymnasium's own mode every other step of an episode of one step is a reset, which ignores the actions.
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def _of_env(arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes out what the environment itself is told; TypeError, before a model is loaded, if it is to be rendered."""
    require_nothing_rendered(arguments.get("render_mode"))
    return {name: arguments.pop(name) for name in _ENV_ARGUMENTS if name in arguments}
