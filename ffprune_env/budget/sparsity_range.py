"""SparsityRange: every sparsity between two, asked for at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SPREAD = 5


@dataclass(frozen=True)
class SparsityRange:
    """All sparsities from ``low`` to ``high``; written ``low:high``.

    Args:
        low: the least of them, in (0, high).
        high: the most, below 1.

    Raises:
        ValueError: the bounds are not in this order.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Checks the order."""
        if not 0 < self.low < self.high < 1:
            raise ValueError(f"a range of sparsities is low:high with 0 < low < high < 1, got {self}")

    @classmethod
    def parse(cls, text: str) -> SparsityRange:
        """Reads ``low:high``; ValueError if it is not that."""
        try:
            low, high = map(float, text.split(":"))
        except ValueError as error:
            raise ValueError(f"a range of sparsities is low:high, as in 0.1:0.5, got {text!r}") from error
        return cls(low, high)

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.low:g}:{self.high:g}"

    def spread(self) -> tuple[float, ...]:
        """Five of them, evenly spread, the ends among them."""
        step = (self.high - self.low) / (_SPREAD - 1)
        return (*(round(self.low + i * step, 6) for i in range(_SPREAD - 1)), self.high)


#: What can be asked for: one sparsity, several, or all between two.
Sparsity = float | tuple[float, ...] | SparsityRange


def parse_sparsity(words: Sequence[str]) -> Sparsity:
    """Reads what stands behind ``--sparsity``.

    Args:
        words: one number, several, or ``low:high``.

    Raises:
        ValueError: they are neither.
    """
    if len(words) == 1 and ":" in words[0]:
        return SparsityRange.parse(words[0])
    try:
        found = tuple(float(word) for word in words)
    except ValueError as error:
        hint = "; 30 % is 0.3" if any("%" in word for word in words) else ""
        raise ValueError(f"a number, several, or low:high, got {' '.join(words)!r}{hint}") from error
    return found[0] if len(found) == 1 else found
