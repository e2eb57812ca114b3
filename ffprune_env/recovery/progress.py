"""How far a recovery is, by tokens or by time: what the learning rate, the looks and the end go by."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

# Of a recovery, at its beginning: the rate rises.
_WARM = 0.05
# Of the highest rate, at the first step.
_FIRST = 0.1
#: Steps of a recovery that only time ends.
NO_END = 10**6


@dataclass
class Progress:
    """How far a recovery is.

    Attributes:
        steps: of the optimizer, in all; None where only time ends it.
        seconds: that it may take; None where only the number of steps ends it.
        spent: seconds that it took before this process.
    """

    steps: int | None
    seconds: float | None = None
    spent: float = 0.0
    _began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since it was begun, in whatever process."""
        return self.spent + time.perf_counter() - self._began

    def at(self, step: int) -> float:
        """The part that is done after so many steps, now: between 0 and 1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = self.elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_time))


def rate_at(progress: float) -> float:
    """The learning rate as a part of the highest: it rises at first, then falls to nothing in a line.

    Args:
        progress: the part of the recovery that is done.
    """
    if progress < _WARM:
        return _FIRST + (1 - _FIRST) * progress / _WARM
    return (1 - progress) / (1 - _WARM)


def looks_made(progress: float, looks: int) -> int:
    """Looks at the held-out loss that are due by now, of so many at equal distances; the last is at the end."""
    return math.floor(progress * looks + 1e-9)


def steps_for(tokens: int, there: int, windows: int, per_step: int) -> int:
    """Steps of the optimizer that so many tokens make, at least one.

    Args:
        tokens: that are to go through the model.
        there: tokens of the text, which begins anew where it ends; the last step before that may have fewer windows.
        windows: that the text has.
        per_step: windows behind a step.
    """
    times, rest = divmod(tokens, there)
    return max(1, times * math.ceil(windows / per_step) + round(rest * windows / there / per_step))
