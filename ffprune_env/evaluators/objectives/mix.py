"""The terms of a reward together: one loss, and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ffprune_env.evaluators.objectives.reward import RewardMix, Term
from ffprune_env.evaluators.objectives.shares import HELD_OUT, Place
from ffprune_env.evaluators.objectives.terms import Objective

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: What is reported on.
REPORTED: Place = (HELD_OUT, ())
_LARGEST = 700.0  # of which exp is still a number


@dataclass(frozen=True, eq=False)
class Objectives:
    """What a model is measured by, in the place of the perplexity of text.

    Attributes:
        reward: what was asked for.
        terms: what measures, in its order.
        texts: windows by place, int64 [n, seq_len]; those that are reported on come when they are known.
        identity: digests of what figures depend on.
        seen: questions that a search may see, as they are asked.
    """

    reward: RewardMix
    terms: tuple[Objective, ...]
    texts: dict[str, torch.Tensor]
    identity: Mapping[str, str]
    seen: Sequence[str] = field(default=())

    def cost(self, model: PreTrainedModel, place: Place) -> float:
        """Exp of the sum of the losses: what a perplexity is of text. ``inf`` if one is not finite.

        Args:
            model: dense or pruned.
            place: which bundles.
        """
        loss = sum(term.weight * x.measured(model, place)[0] for term, x in self._weighted())
        return math.exp(loss) if loss <= _LARGEST else math.inf

    def prepare(self, model: PreTrainedModel, place: Place) -> None:
        """Looks at the dense model, if a term has to, before a pruned one is measured."""
        for term in self.terms:
            term.prepare(model, place)

    def reported(self, model: PreTrainedModel) -> dict[str, float]:
        """What is held out says of a model: the loss, and what it is made of, by term and name.

        Windows of test text are among ``texts`` by then, and :meth:`prepare` has been called for :data:`REPORTED`.
        """
        found: dict[str, float] = {}
        loss = 0.0
        for term, x in self._weighted():
            own, parts = x.measured(model, REPORTED)
            loss += term.weight * own
            found |= {f"{term}: {name}" if name in found else name: part for name, part in parts.items()}
        return {"loss": loss, **found}

    @property
    def pools(self) -> list[int]:
        """Bundles to draw from, of the terms that have bundles."""
        return [term.pool for term in self.terms if term.pool is not None]

    def _weighted(self) -> Iterator[tuple[Term, Objective]]:
        return zip(self.reward.terms, self.terms, strict=True)


def reward_of(held_out: Mapping[str, float], dense: Mapping[str, float]) -> float:
    """The reward that :meth:`Objectives.reported` amounts to.

    Args:
        held_out: what it says of a model.
        dense: what it says of the dense one.
    """
    if held_out.keys() == {"loss", "value"}:  # of a function alone, what it says is the reward
        return held_out["value"]
    return math.exp(min(dense["loss"] - held_out["loss"], _LARGEST))
