"""The methods by name.

Each takes a :class:`~ffprune_env.search.problem.Problem` and returns an
:class:`~ffprune_env.budget.allocation.Allocation`, so two rows of a comparison differ in the policy alone.
``svd_llm`` and ``slicegpt`` are of another kind: they rebuild the weights of a copy of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from typing import Any

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.methods.cma_es import cma_es
from ffprune_env.methods.depth import depth
from ffprune_env.methods.eas import eas
from ffprune_env.methods.evolution import evolution
from ffprune_env.methods.evopress import evopress
from ffprune_env.methods.flap import flap
from ffprune_env.methods.policy import answer_all, policy
from ffprune_env.methods.ppo import Found, ppo
from ffprune_env.methods.ppo_paper import PAPER, ppo_paper
from ffprune_env.methods.random_search import random_search
from ffprune_env.search.problem import Problem
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.fisher import fisher
from ffprune_env.search.starts.fisher_iterated import fisher_iterated


@dataclass(frozen=True)
class WarmStart:
    """Another search that a search starts from.

    Attributes:
        method: its name.
        sparsity: σ that it was searched at.
        share: of the usual budget that is enough from there.
    """

    method: str
    sparsity: float
    share: float


@dataclass(frozen=True)
class Method:
    """A way to answer a problem.

    Attributes:
        answer: the problem to an allocation.
        searches: whether it draws and measures, so that seed and budget matter.
        plain_reward: whether it is rewarded for the model that is only cut, whatever the others are rewarded for.
        flap_bias: whether it is FLAP as its authors have it: it ranks by its own scores, not as all others do, and its
            own bias compensation takes the place of the ridge calibration.
        answer_all: of a method that answers all sparsities of a problem by one search: the problem to what it found at
            each; None for those that answer one at a time.
        warm: the search that it starts from, with the same seed; None for those that start as the problem says.
    """

    answer: Callable[[Problem], Allocation]
    searches: bool
    plain_reward: bool = False
    flap_bias: bool = False
    answer_all: Callable[[Problem], Mapping[float, Found]] | None = None
    warm: WarmStart | None = None

    def budget(self, evaluations: int) -> int:
        """Evaluations that it gets where a search that starts from nothing gets ``evaluations``."""
        if not self.searches:
            return 0
        return evaluations if self.warm is None else max(1, round(self.warm.share * evaluations))


def settings_of(method: Method, targets: Sequence[float] = ()) -> dict[str, Any]:
    """What a method is told beside its problem: whatever has a default in its signature, a dataclass by its fields.

    Args:
        method: one of them.
        targets: all sparsities that are asked about; they are settings of a method that answers them together.
    """
    found: dict[str, Any] = {"plain_reward": method.plain_reward, "flap_bias": method.flap_bias}
    for name, parameter in inspect.signature(method.answer).parameters.items():
        default = parameter.default
        if is_dataclass(default) and not isinstance(default, type):
            found |= asdict(default)
        elif default is not parameter.empty:
            found[name] = default
    found |= {} if method.warm is None else {"warm": asdict(method.warm)}
    return found if method.answer_all is None else {**found, "targets": list(targets)}


def ppo_from_nothing(problem: Problem, settings: SearchSettings) -> Allocation:
    """`ppo` from equal scores, wherever other searches start; it is not given `ffn-only` at its end either."""
    return ppo(replace(problem, init="none"), settings)


METHODS: dict[str, Method] = {
    "uniform": Method(lambda problem: uniform(problem.sparsity, problem.units), searches=False),
    "ffn-only": Method(lambda problem: ffn_only(problem.sparsity, problem.units), searches=False),
    "flap": Method(flap, searches=False),
    "flap-bias": Method(flap, searches=False, flap_bias=True),
    "depth": Method(depth, searches=False),
    "fisher": Method(fisher, searches=False),
    "fisher-iterated": Method(fisher_iterated, searches=False),
    "random": Method(random_search, searches=True),
    "evolution": Method(evolution, searches=True),
    "eas": Method(eas, searches=True),
    "evopress": Method(evopress, searches=True),
    "cma-es": Method(cma_es, searches=True),
    "ppo-paper": Method(partial(ppo_paper, settings=PAPER), searches=True, plain_reward=True),
    "ppo-from-nothing": Method(partial(ppo_from_nothing, settings=SearchSettings()), searches=True),
    "ppo": Method(partial(ppo, settings=SearchSettings()), searches=True),
    "policy": Method(
        partial(policy, settings=SearchSettings()),
        searches=True,
        answer_all=partial(answer_all, settings=SearchSettings()),
    ),
}
