"""What one term of a reward measures: a loss in nats, the lower the better, on bundles that go along with windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ffprune_env.evaluators.objectives.lines import Line, line_losses
from ffprune_env.evaluators.objectives.shares import HELD_OUT, Bundles, Place
from ffprune_env.lm.divergence import compare_with_dense, final_hidden_states
from ffprune_env.lm.loss import perplexity_of, window_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Questions that are decided either way say no more, and one of them must not outweigh all others.
_DECIDED = 5.0


class Objective(Protocol):
    """One thing that a model is to stay good at."""

    @property
    def pool(self) -> int | None:
        """Bundles to draw from; None where there is one for every window."""
        ...

    def prepare(self, model: PreTrainedModel, place: Place) -> None:
        """Looks at the dense model, where what is measured next is a difference to that."""
        ...

    def measured(self, model: PreTrainedModel, place: Place) -> tuple[float, dict[str, float]]:
        """The loss on some bundles, ``inf`` if it is not finite, and what it is made of, by name, for people."""
        ...


@dataclass(eq=False)
class TextLoss:
    """``ppl``: the loss of text.

    Attributes:
        texts: int64 [n, seq_len] by purpose; those that are reported on come later.
        batch_size: windows per forward pass; None chooses.
    """

    texts: Mapping[str, torch.Tensor]
    batch_size: int | None
    pool: None = None

    def prepare(self, model: PreTrainedModel, place: Place) -> None:
        """Nothing."""

    def measured(self, model: PreTrainedModel, place: Place) -> tuple[float, dict[str, float]]:
        """Ln PPL."""
        ppl = perplexity_of(window_losses(model, _windows(self.texts, place), self.batch_size))
        return math.log(ppl), {"ppl": ppl}


@dataclass(eq=False)
class TextDivergence:
    """``kl``: the divergence from the dense model on text; its attributes are those of :class:`TextLoss`."""

    texts: Mapping[str, torch.Tensor]
    batch_size: int | None
    pool: None = None

    def __post_init__(self) -> None:
        """Knows nothing of the dense model yet."""
        self._dense: tuple[Place, torch.Tensor, list[torch.Tensor]] | None = None

    def prepare(self, model: PreTrainedModel, place: Place) -> None:
        """Keeps what the dense model makes of these windows, until others are asked for."""
        windows = _windows(self.texts, place)  # what stands at one place may be other text by now
        if self._dense is None or self._dense[0] != place or not torch.equal(self._dense[1], windows):
            self._dense = None  # there may be no room for two
            self._dense = place, windows, final_hidden_states(model, windows, self.batch_size)

    def measured(self, model: PreTrainedModel, place: Place) -> tuple[float, dict[str, float]]:
        """Mean KL(dense ‖ pruned).

        Raises:
            RuntimeError: the dense model was last looked at on other windows.
        """
        if self._dense is None or self._dense[0] != place:
            raise RuntimeError(f"the dense model was not looked at on {place[0]} windows: prepare for them first")
        _, windows, states = self._dense
        kl = compare_with_dense(model, windows, states, self.batch_size)[1]
        return kl, {"kl": kl}


@dataclass(frozen=True, eq=False)
class Asked:
    """A question in tokens.

    Attributes:
        lines: one for every choice.
        answer: which is right.
    """

    lines: tuple[Line, ...]
    answer: int


@dataclass(eq=False)
class Margins:
    """``tasks``: how much likelier the right answer is than the best wrong one.

    Attributes:
        tasks: bundles of questions by task; every task counts the same.
        batch_size: token sequences per forward pass; None chooses.
    """

    tasks: Mapping[str, Bundles[Asked]]
    batch_size: int | None

    @property
    def pool(self) -> int:
        """Bundles that all tasks have."""
        return min(bundles.pool for bundles in self.tasks.values())

    def prepare(self, model: PreTrainedModel, place: Place) -> None:
        """Nothing."""

    def measured(self, model: PreTrainedModel, place: Place) -> tuple[float, dict[str, float]]:
        """Minus the mean margin in nats, where no single one counts for more than 5; and the share that is positive."""
        asked = {name: bundles.at(place) for name, bundles in self.tasks.items()}
        lines = [line for questions in asked.values() for question in questions for line in question.lines]
        losses = iter(line_losses(model, lines, self.batch_size))
        means, right = [], []
        for questions in asked.values():
            margins = [margin([-next(losses) for _ in question.lines], question.answer) for question in questions]
            means.append(sum(map(_clipped, margins)) / len(margins))
            right.append(sum(x > 0 for x in margins) / len(margins))
        mean = sum(means) / len(means)
        return _finite(-mean), {"margin": mean, "accuracy": sum(right) / len(right)}


@dataclass(eq=False)
class Conversations:
    """``chat``: the loss of answers.

    Attributes:
        bundles: of conversations.
        batch_size: of them per forward pass; None chooses.
    """

    bundles: Bundles[Line]
    batch_size: int | None

    @property
    def pool(self) -> int:
        """Bundles to draw from."""
        return self.bundles.pool

    def prepare(self, model: PreTrainedModel, place: Place) -> None:
        """Nothing."""

    def measured(self, model: PreTrainedModel, place: Place) -> tuple[float, dict[str, float]]:
        """Mean loss of all tokens of answers, and their perplexity."""
        lines = self.bundles.at(place)
        loss = _finite(sum(line_losses(model, lines, self.batch_size)) / sum(len(line.rows) for line in lines))
        return loss, {"chat ppl": math.exp(min(loss, 700.0)) if loss < math.inf else math.inf}


def margin(likelihoods: Sequence[float], answer: int) -> float:
    """How much larger the log-likelihood of the right answer is than that of the best wrong one; NaN if one is.

    Args:
        likelihoods: of every choice, in nats.
        answer: which is right.
    """
    if not all(math.isfinite(x) for x in likelihoods):
        return math.nan
    return likelihoods[answer] - max(x for i, x in enumerate(likelihoods) if i != answer)


def _clipped(x: float) -> float:
    return x if math.isnan(x) else max(-_DECIDED, min(x, _DECIDED))


def _windows(texts: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:
    purpose, indices = place
    return texts[purpose] if purpose == HELD_OUT else texts[purpose][list(indices)]


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
