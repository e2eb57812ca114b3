"""The methods by name.

Each takes a :class:`~ffprune_env.search.problem.Problem` and returns an
:class:`~ffprune_env.budget.allocation.Allocation`, so two rows of a comparison differ in the policy alone.
``svd_llm`` and ``slicegpt`` are of another kind: they rebuild the weights of a copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from ffprune_env.methods.ppo_from_nothing import ppo_from_nothing
from ffprune_env.methods.ppo_paper import PAPER, ppo_paper
from ffprune_env.methods.random_search import random_search
from ffprune_env.search.problem import Problem
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.fisher import fisher
from ffprune_env.search.starts.fisher_iterated import STEPS, fisher_iterated


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
        settings: what a search by PPO is told beside its problem; None for the others.
        steps: how often `fisher-iterated` improves its start; None for the others.
    """

    answer: Callable[[Problem], Allocation]
    searches: bool
    plain_reward: bool = False
    flap_bias: bool = False
    answer_all: Callable[[Problem], Mapping[float, Found]] | None = None
    warm: WarmStart | None = None
    settings: SearchSettings | None = None
    steps: int | None = None

    def budget(self, evaluations: int) -> int:
        """Evaluations that it gets where a search that starts from nothing gets ``evaluations``."""
        if not self.searches:
            return 0
        return evaluations if self.warm is None else max(1, round(self.warm.share * evaluations))


def by_ppo(
    answer: Callable[..., Allocation],
    settings: SearchSettings,
    *,
    plain_reward: bool = False,
    answer_all: Callable[..., Mapping[float, Found]] | None = None,
) -> Method:
    """A search by PPO, told its settings; they are in the record of its cells, too.

    Args:
        answer: the problem, and as ``settings`` those of the search, to an allocation.
        settings: of the search.
        plain_reward: as :class:`Method` has it.
        answer_all: as :class:`Method` has it, and told the settings like ``answer``.
    """
    return Method(
        partial(answer, settings=settings),
        searches=True,
        plain_reward=plain_reward,
        answer_all=None if answer_all is None else partial(answer_all, settings=settings),
        settings=settings,
    )


def settings_of(method: Method, targets: Sequence[float] = ()) -> dict[str, Any]:
    """What a method is told beside its problem, as its cells record it: on disk they are compared with this.

    Args:
        method: one of them.
        targets: all sparsities that are asked about; they are settings of a method that answers them together.
    """
    found: dict[str, Any] = {"plain_reward": method.plain_reward, "flap_bias": method.flap_bias}
    found |= {} if method.settings is None else asdict(method.settings)
    found |= {} if method.steps is None else {"steps": method.steps}
    found |= {} if method.warm is None else {"warm": asdict(method.warm)}
    return found if method.answer_all is None else {**found, "targets": list(targets)}


METHODS: dict[str, Method] = {
    "uniform": Method(lambda problem: uniform(problem.sparsity, problem.units), searches=False),
    "ffn-only": Method(lambda problem: ffn_only(problem.sparsity, problem.units), searches=False),
    "flap": Method(flap, searches=False),
    "flap-bias": Method(flap, searches=False, flap_bias=True),
    "depth": Method(depth, searches=False),
    "fisher": Method(fisher, searches=False),
    "fisher-iterated": Method(partial(fisher_iterated, steps=STEPS), searches=False, steps=STEPS),
    "random": Method(random_search, searches=True),
    "evolution": Method(evolution, searches=True),
    "eas": Method(eas, searches=True),
    "evopress": Method(evopress, searches=True),
    "cma-es": Method(cma_es, searches=True),
    "ppo-paper": by_ppo(ppo_paper, PAPER, plain_reward=True),
    "ppo-from-nothing": by_ppo(ppo_from_nothing, SearchSettings()),
    "ppo": by_ppo(ppo, SearchSettings()),
    "policy": by_ppo(policy, SearchSettings(), answer_all=answer_all),
}
