"""What stands behind ``--reward``, as a value. Settings and files keep the text, which is read once and remembered."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

#: How a measurement becomes a reward: PPL_dense / PPL, exp(-KL), or the value itself.
RewardKind = Literal["ppl", "kl", "value"]

NAMED = ("ppl", "kl", "tasks", "chat")
_GIVEN = "given:function"
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Term:
    """One thing that a model is to stay good at.

    Attributes:
        kind: ``ppl``, ``kl``, ``tasks``, ``chat`` or ``function``.
        of: what of it: names of tasks or a file, a file of conversations, ``module:function``; empty of ``ppl``, ``kl``
            and of all tasks.
        weight: of its loss in the sum.
    """

    kind: str
    of: str = ""
    weight: float = 1.0

    def __str__(self) -> str:
        """As it is written, without its weight."""
        return self.of if self.kind == "function" else f"{self.kind}:{self.of}" if self.of else self.kind


@dataclass(frozen=True)
class RewardMix:
    """What a step is rewarded with.

    Attributes:
        terms: at least one.
    """

    terms: tuple[Term, ...]

    @property
    def kind(self) -> RewardKind:
        """How what is measured becomes a reward."""
        only = self.terms[0].kind if len(self.terms) == 1 else ""
        if only == "kl":
            return "kl"
        return "value" if only == "function" else "ppl"

    @property
    def of_text(self) -> bool:
        """Whether it is ``ppl`` or ``kl`` alone, which every evaluator of a search can measure by itself."""
        return len(self.terms) == 1 and self.terms[0].kind in ("ppl", "kl")

    @property
    def reads_data(self) -> bool:
        """Whether anything is measured on windows, questions or conversations: functions bring their own."""
        return any(term.kind != "function" for term in self.terms)


#: The perplexity of text alone: what every evaluator measures where nothing else is asked for.
PERPLEXITY = RewardMix((Term("ppl"),))


@lru_cache
def parse_reward(text: str) -> RewardMix:
    """Reads what stands behind ``--reward``.

    Args:
        text: one term or several, with weights behind ``=``: ``ppl``, ``kl``, ``tasks``, ``tasks:piqa,arc_easy``,
            ``tasks:questions.jsonl``, ``chat:talks.jsonl`` or ``module:function``, as in ``ppl=0.5 tasks:piqa=0.5``.

    Raises:
        ValueError: it is not that.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--reward {text!r} cannot be read: {error}") from error
    if not words:
        raise ValueError(f"--reward takes {_allowed()}, got nothing")
    terms = tuple(_term(word, len(words) > 1) for word in words)
    if len({str(term) for term in terms}) < len(terms):
        raise ValueError(f"--reward {text!r} has a term twice")
    return RewardMix(terms)


def written(mix: RewardMix) -> str:
    """A reward as :func:`parse_reward` reads it; a function that was given as itself by a name that it can have.

    Args:
        mix: what is rewarded.
    """
    names = [str(term) if term.kind != "function" or _FUNCTION.fullmatch(term.of) else _GIVEN for term in mix.terms]
    if len(names) == 1 and mix.terms[0].weight == 1:
        return shlex.join(names)
    return shlex.join(f"{name}={term.weight:g}" for name, term in zip(names, mix.terms, strict=True))


def mix_of(reward: str | Callable[..., Any]) -> RewardMix:
    """What is rewarded.

    Args:
        reward: as :func:`parse_reward` reads it; or a function itself, which is then the only term, by its name.

    Raises:
        ValueError: a text that is no reward.
    """
    if isinstance(reward, str):
        return parse_reward(reward)
    return RewardMix((Term("function", getattr(reward, "__name__", type(reward).__name__)),))


def _allowed() -> str:
    return f"{', '.join(NAMED)}, module:function, or several with weights, as in ppl=0.5 tasks=0.5"


def _term(word: str, mixed: bool) -> Term:
    name, weighted, number = word.rpartition("=")
    if not weighted:
        name, number = word, "1"
    try:
        weight = float(number)
    except ValueError:
        if mixed:
            raise ValueError(f"--reward: the weight of {name} must be a number, got {number!r}") from None
        name, weight = word, 1.0  # a path may hold a sign like that
    if not (0 < weight < math.inf):
        raise ValueError(f"--reward: the weight of {name} must be positive and finite, got {number}")
    kind, colon, of = name.partition(":")
    if kind in ("ppl", "kl") and not colon:
        return Term(kind, "", weight)
    if kind == "tasks" and (of or not colon):
        return Term(kind, of, weight)
    if kind == "chat":
        if not of:
            raise ValueError("--reward chat needs a file of conversations: chat:talks.jsonl")
        return Term(kind, of, weight)
    if _FUNCTION.fullmatch(name) and kind not in NAMED:
        return Term("function", name, weight)
    raise ValueError(f"unknown reward {name!r}; allowed are {_allowed()}")
