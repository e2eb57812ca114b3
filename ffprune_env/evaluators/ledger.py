"""What a search costs, part by part: a ledger that whoever makes a part writes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

from ffprune_env.lm.cost import Cost, Tally, counting

#: What a search is made of: putting heads and channels in order and trying the model, where the policy starts, the
#: evaluations and the training, the last look at a few candidates, the re-fitting of what was chosen, and the models
#: that were made to meet a limit.
Part = Literal["ranking", "start", "search", "finalists", "calibration", "limit"]
PARTS: tuple[Part, ...] = get_args(Part)


def in_sum(costs: Mapping[Part, Cost]) -> Cost:
    """What all parts cost together."""
    return sum(costs.values(), Cost())


class Ledger:
    """What the parts of one search cost, as far as they were made in this process."""

    def __init__(self) -> None:
        self._ended: dict[Part, Cost] = {}
        self._begun: dict[Part, Tally] = {}

    @contextmanager
    def part(self, name: Part, devices: int = 1) -> Iterator[None]:
        """Inside, a part is made; if it was made before, this is more of it.

        Args:
            name: of the part.
            devices: that are held for it.
        """
        with counting(devices) as self._begun[name]:
            try:
                yield
            finally:
                self.add(name, self._begun.pop(name).cost)

    def add(self, name: Part, cost: Cost) -> None:
        """Adds to a part."""
        self._ended[name] = self._ended.get(name, Cost()) + cost

    @property
    def parts(self) -> dict[Part, Cost]:
        """What every part has cost so far, in the order of PARTS; nothing of those that were not made."""
        found = dict(self._ended)
        for name, tally in self._begun.items():
            found[name] = found.get(name, Cost()) + tally.cost
        return {name: found[name] for name in PARTS if name in found}
