"""Budget: what may stay of a model, in a measure that people have."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

#: What is counted: Σ w_i, all parameters, bytes of the file that is written, bytes of key/value cache per token, or the
#: time of a prompt, of an answer, or of both, on one server of this machine.
MeasureName = Literal["prunable", "parameters", "size", "kv", "prefill", "decode", "latency"]
#: Those that are timed.
TIMES: tuple[MeasureName, ...] = ("prefill", "decode", "latency")
#: How much of it: so much may stay in all, so much of the dense model may stay, or so much of it goes.
AmountKind = Literal["at most", "times", "less"]

# What is counted in bytes, and what as a share of the dense model alone.
_BYTES: tuple[MeasureName, ...] = ("size", "kv")
_SHARES: tuple[MeasureName, ...] = ("prunable", *TIMES)
_PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
# Nobody asks for a model of so few parameters: a number below it is a percentage without its sign.
_FEWEST_PARAMETERS = 1000
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+)([a-z%]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """What may stay of a model; written as a measure and an amount, as in ``size 150MB``.

    Args:
        measure: what is counted.
        amount: how much of it: a fraction in (0, 1), or a number of parameters or bytes.
        kind: ``less``: that fraction of the dense model goes; ``times``: that fraction of it may stay; ``at most``:
            that many may stay.

    Raises:
        ValueError: there is no such measure, or no such amount of it; of parameters 1000 are the fewest.
    """

    measure: MeasureName
    amount: float
    kind: AmountKind

    def __post_init__(self) -> None:
        """Checks both."""
        if self.measure not in get_args(MeasureName):
            raise ValueError(f"unknown measure {self.measure!r}; allowed are {', '.join(get_args(MeasureName))}")
        if self.kind != "at most":
            if not 0 < self.amount < 1:
                raise ValueError(f"of a model more than nothing and less than all may go and stay, got {self}")
        elif self.measure in _SHARES or not _least(self.measure) <= self.amount < math.inf:
            raise ValueError(f"an amount of {self.measure} is written {_written(self.measure)}, got {self.amount:g}")

    @classmethod
    def parse(cls, words: Sequence[str]) -> Budget:
        """Reads what stands behind ``--budget``: a measure, and an amount.

        Args:
            words: such as ``size 150MB``, ``parameters 20%`` or ``kv 0.5x``.

        Raises:
            ValueError: they are none.
        """
        if len(words) != 2:
            raise ValueError(f"a budget is a measure and an amount, as in size 150MB, got {' '.join(words)!r}")
        measure, amount = words
        if measure not in get_args(MeasureName):
            raise ValueError(f"unknown measure {measure!r}; allowed are {', '.join(get_args(MeasureName))}")
        measure = cast("MeasureName", measure)
        match = _NUMBER.fullmatch(amount)
        if match is not None:
            number, unit = float(match[1]), match[2]
            if unit == "%":
                return cls(measure, number / 100, "less")
            if unit.lower() == "x":
                return cls(measure, number, "times")
            size = _size(measure, unit)
            if size is not None and number * size >= _least(measure):
                return cls(measure, number * size, "at most")
        raise ValueError(f"an amount of {measure} is written {_written(measure)}, got {amount!r}")

    def __str__(self) -> str:
        """As it is written."""
        if self.kind == "less":
            return f"{self.measure} {100 * self.amount:g}%"
        if self.kind == "times":
            return f"{self.measure} {self.amount:g}x"
        return f"{self.measure} {told(self.amount, self.measure, 12).replace(' ', '')}"

    def bound(self, dense: int) -> int:
        """What may stay.

        Args:
            dense: what the dense model has.
        """
        share = {"less": (1 - self.amount) * dense, "times": self.amount * dense, "at most": self.amount}[self.kind]
        return math.floor(share + 1e-6)  # 0.7 of 10 is 7

    @property
    def words(self) -> list[str]:
        """As :meth:`parse` takes it."""
        return str(self).split(" ")


def told(amount: float, measure: MeasureName, digits: int = 5) -> str:
    """An amount for a person: ``150.2 MB``, ``1.1 B``, ``31.5 ms``.

    Args:
        amount: parameters, bytes or nanoseconds.
        measure: of what.
        digits: how many count.
    """
    names: tuple[str, ...] = ("", "K", "M", "B", "T")
    if measure in TIMES:
        names = ("ns", "µs", "ms", "s")
    elif measure in _BYTES:
        names = ("B", "KB", "MB", "GB", "TB")
    step = min(len(names) - 1, int(math.log10(max(amount, 1)) // 3))
    return f"{amount / 1000**step:.{digits}g} {names[step]}".rstrip()


def _least(measure: MeasureName) -> int:
    """The smallest number that can be asked for, where that is no share of the dense model."""
    return 1 if measure in _BYTES else _FEWEST_PARAMETERS


def _size(measure: MeasureName, unit: str) -> int | None:
    """What a unit of measure stands for; None if it is none."""
    if measure in _SHARES:
        return None
    if measure in _BYTES:
        unit = unit.removesuffix("B").removesuffix("b") if unit else "?"
    else:
        unit = "G" if unit == "B" else unit
    return {prefix.lower(): size for prefix, size in _PREFIXES.items()}.get(unit.lower())


def _written(measure: MeasureName) -> str:
    if measure in _SHARES:
        return "20% (of it goes) or 0.8x (of it stays)"
    return f"20% (of it goes), 0.8x (of it stays) or {'150MB' if measure in _BYTES else '1.1B'} (stays at most)"
