"""What a search added to its start, and what that cost: one line at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ffprune_env.evaluators.objectives.reward import PERPLEXITY, RewardMix
from ffprune_env.search.in_words import windows_in_words

#: What the last candidates of a search are called: the scores that it started from, the policy's mean, and the one that
#: no search and no curves speak for.
START, MEAN, SAFETY_NET = "the start", "the policy's mean", "ffn-only"
#: Candidates that nobody has to search for.
FREE = (START, SAFETY_NET)


@dataclass(frozen=True)
class Added:
    """How much better the chosen answer is than the start, on windows that both were measured on.

    The answer was chosen on these windows as the best of several, so its lead is a little optimistic: text that nobody
    chose by, such as test text, shows somewhat less.

    Attributes:
        chosen: name of the answer; it may be the start itself.
        nats: mean loss per token of the start minus that of the answer; 0 if that is the start, below 0 where that is
            `ffn-only` and leads by no more than chance.
        windows: how many windows that is of: the first of those for finalists.
        next_best: name of the second best, measured on as many windows as the best; None if there was no other.
        next_nats: its mean loss per token minus that of the answer; below 0 where its lead is no more than chance.
    """

    chosen: str
    nats: float
    windows: int
    next_best: str | None = None
    next_nats: float | None = None

    @property
    def percent(self) -> float:
        """By how much the answer's perplexity is lower than the start's, in percent of it, where losses are its."""
        return -100 * math.expm1(-self.nats)

    def written(self, rewarded: RewardMix = PERPLEXITY) -> dict[str, Any]:
        """As ``best.json`` has it: the fields, and ``percent`` where perplexity is what is rewarded.

        Args:
            rewarded: what the losses are of.
        """
        return asdict(self) | ({"percent": self.percent} if rewarded == PERPLEXITY else {})

    def told(self, start: str, search_windows: int, seconds: float | None, rewarded: RewardMix = PERPLEXITY) -> str:
        """The line.

        Args:
            start: what the start is, such as ``fisher-iterated``.
            search_windows: windows of search text that the search measured.
            seconds: wall time of the search; None if none was made.
            rewarded: what the losses are of: of perplexity and divergence they are nats per token.
        """
        unit = "nats per token" if rewarded.of_text else "of the rewarded loss"
        on = f"on {windows_in_words(self.windows)}"
        rival = ""
        if self.next_best is not None and self.next_nats is not None:
            chance = ", no more than chance," if self.next_nats < 0 else ""
            rival = f"{self.next_best} comes next, {self.next_nats:+.4f} {unit}{chance} {on}"
        if seconds is None:
            answer = f"the start ({start})" if self.chosen == START else f"{self.chosen}, not the start ({start}),"
            return f"no search was made (--evaluations makes one): {answer} is the answer{rival and '; ' + rival}"
        cost = f"it cost {search_windows} windows in {seconds:.0f} s"
        size = f"{self.nats:.4f} {unit}" + (f" ({self.percent:.2f} % of PPL)" if rewarded == PERPLEXITY else "")
        if self.chosen == START:
            return f"PPO added nothing to its start ({start}){rival and ': ' + rival}; {cost}"
        if self.chosen in FREE:
            return f"PPO added nothing: {self.chosen} is better than its start ({start}) by {size} {on}; {cost}"
        if self.nats < 0:
            lead = f"the start ({start}) leads by {-self.nats:.4f} {unit} {on}, no more than chance"
            return f"PPO's answer is {self.chosen}: {lead}; {cost}"
        doubt = f"; {rival}" if self.next_nats is not None and self.next_nats < 0 else ""
        return f"PPO added to its start ({start}): {self.chosen} is better by {size} {on}{doubt}; {cost}"


def compare(order: list[str], losses: Mapping[str, Mapping[int, float]]) -> Added:
    """Compares the best of some candidates with the start.

    Args:
        order: names of those that were measured to the end, the best first.
        losses: mean loss per token by name, of all candidates, and by the number of windows that it was measured on:
            always the first of the same.
    """
    best = order[0]
    common = max(losses[best].keys() & losses[START].keys())
    most = max(losses[best])
    second = order[1] if len(order) > 1 else None
    return Added(
        chosen=best,
        nats=_difference(losses[START][common], losses[best][common]),
        windows=common,
        next_best=second,
        next_nats=None if second is None else _difference(losses[second][most], losses[best][most]),
    )


def _difference(worse: float, better: float) -> float:
    """Of losses that may both be infinite."""
    return 0.0 if worse == better else worse - better
