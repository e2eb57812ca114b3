"""Limit: what a pruned model may lose, as people say it, and as a difference of mean losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LimitName = Literal["max_loss", "max_ppl", "min_reward"]


@dataclass(frozen=True)
class Limit:
    """What a model may lose.

    Attributes:
        name: ``max_loss``: PPL / PPL_dense - 1 is at most ``value``; ``max_ppl``: PPL is; ``min_reward``: PPL_dense /
            PPL is at least that.
        value: the limit.
    """

    name: LimitName
    value: float

    @classmethod
    def max_loss(cls, words: str) -> Limit:
        """Reads what stands behind ``--max-loss``.

        Args:
            words: a percentage, such as ``5%``, or a fraction below 1, such as ``0.05``.

        Raises:
            ValueError: they are neither, or not above 0.
        """
        number, percent = words.strip().removesuffix("%"), words.strip().endswith("%")
        try:
            value = float(number) / (100 if percent else 1)
        except ValueError:
            value = math.nan
        if not 0 < value < (math.inf if percent else 1):
            raise ValueError(
                f"--max-loss takes a percentage above 0, such as 5%, or a fraction between 0 and 1, such as 0.05, "
                f"got {words!r}"
            )
        return cls("max_loss", value)

    @classmethod
    def max_ppl(cls, ppl: float) -> Limit:
        """The limit of ``--max-ppl``; ValueError if no perplexity can be below it."""
        if not 1 < ppl < math.inf:
            raise ValueError(f"--max-ppl takes a perplexity, which is above 1, got {ppl:g}")
        return cls("max_ppl", ppl)

    @classmethod
    def min_reward(cls, reward: float) -> Limit:
        """The limit of ``--min-reward``; ValueError if it is none that pruning could be held to."""
        if not 0 < reward < 1:
            raise ValueError(f"--min-reward takes PPL_dense / PPL, between 0 and 1, got {reward:g}")
        return cls("min_reward", reward)

    def most(self, dense_ppl: float) -> float:
        """How much the mean loss over tokens may rise, in nats.

        Args:
            dense_ppl: perplexity of the dense model on the text that the limit is about.

        Raises:
            ValueError: the dense model itself does not meet the limit.
        """
        if self.name == "max_loss":
            return math.log1p(self.value)
        if self.name == "min_reward":
            return -math.log(self.value)
        if self.value <= dense_ppl:
            raise ValueError(
                f"--max-ppl {self.value:g}: the dense model has {dense_ppl:.2f} on this text, no pruned one is better; "
                f"give more"
            )
        return math.log(self.value / dense_ppl)

    def __str__(self) -> str:
        """As it is said on the command line."""
        value = f"{100 * self.value:g}%" if self.name == "max_loss" else f"{self.value:g}"
        return f"--{self.name.replace('_', '-')} {value}"
