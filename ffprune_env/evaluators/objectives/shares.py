"""Who gets which items of a data set: split by what they say, and bundled so that a bundle costs what a window does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

#: Which bundles: of search text's windows by purpose, their indices; ``further`` are those of the pool, then of watch.
Place = tuple[str, tuple[int, ...]]
#: The purpose of what is reported, and that no search sees.
HELD_OUT = "held-out"
_SALT = "ffprune 1"
# What is reported on may cost about so many windows of text, for every model in the report.
_REPORTED_WINDOWS = 32
_LEAST_REPORTED = 16


@dataclass(frozen=True)
class Counts:
    """How many windows of text there are by purpose, which bundles go along with.

    Attributes:
        search: of every evaluation.
        finalists: of the last look.
        pool: to draw from.
        watch: to watch a search on.
        tokens: of a window.
    """

    search: int
    finalists: int
    pool: int
    watch: int
    tokens: int

    @property
    def least(self) -> int:
        """Bundles without which a search cannot be made."""
        return self.search + self.finalists + self.watch + min(self.pool, self.search)


def place_in_order(said: str) -> str:
    """Where an item stands in an order that is as good as drawn, and the same for ever.

    Args:
        said: what the item says; two that say the same are at one place, and on one side.
    """
    return hashlib.sha256(f"{_SALT}\0{' '.join(said.casefold().split())}".encode()).hexdigest()


def is_held_out(said: str) -> bool:
    """Whether an item is reported on; no search sees it then. Half of all are."""
    return int(place_in_order(said)[-1], 16) % 2 == 0


def split(items: Mapping[str, T]) -> tuple[list[T], list[T]]:
    """Splits items into those to search on and those to report on, each in the order of their hashes.

    Args:
        items: by what they say.
    """
    ordered = sorted(items, key=place_in_order)
    return [items[x] for x in ordered if not is_held_out(x)], [items[x] for x in ordered if is_held_out(x)]


class Bundles(Generic[T]):
    """Items of one data set, a bundle of them for every window of text.

    Args:
        name: of the data set, for messages.
        search: items to search on, in the order in which they are given out.
        held_out: items to report on; only so many are taken as are worth the time.
        tokens_of: tokens that every item to search on takes to read.
        counts: of windows.
        groups: data sets whose bundles are measured together and cost a window together.

    Attributes:
        pool: bundles to draw from; fewer than windows where items are few.

    Raises:
        ValueError: there are too few items.
    """

    #: Items of one data set that are reported on, at the most.
    REPORTED = 100

    def __init__(
        self,
        name: str,
        search: Sequence[T],
        held_out: Sequence[T],
        tokens_of: Sequence[int],
        counts: Counts,
        groups: int = 1,
    ) -> None:
        if len(search) < counts.least or not held_out:
            raise ValueError(
                f"{name} has {len(search)} items to search on and {len(held_out)} to report on, at least "
                f"{counts.least} and 1 are needed: give more of them, or fewer --search-windows and --final-windows"
            )
        fixed = counts.search + counts.finalists + counts.watch
        affordable = max(1, round(counts.tokens * len(search) / max(1, sum(tokens_of)) / groups))
        self.size = min(affordable, max(1, len(search) // (fixed + counts.pool)))
        self.pool = min(counts.pool, len(search) // self.size - fixed)
        reported = round(_REPORTED_WINDOWS * counts.tokens * len(search) / max(1, sum(tokens_of)) / groups)
        self.held_out = list(held_out[: min(max(_LEAST_REPORTED, reported), self.REPORTED)])
        self._bundles: dict[tuple[str, int], Sequence[T]] = {}
        owners = [("search", i) for i in range(counts.search)] + [("finalists", i) for i in range(counts.finalists)]
        owners += [("further", counts.pool + i) for i in range(counts.watch)]
        owners += [("further", i) for i in range(self.pool)]
        for number, owner in enumerate(owners):
            self._bundles[owner] = search[number * self.size : (number + 1) * self.size]

    def at(self, place: Place) -> list[T]:
        """The items of some bundles, or those to report on."""
        purpose, indices = place
        if purpose == HELD_OUT:
            return self.held_out
        return [item for i in indices for item in self._bundles[purpose, i]]
