"""Device-hours, and the hardware that they were spent on: of different hardware they do not add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

_SECONDS = 3600


@dataclass(frozen=True)
class Cost:
    """What a part of the work cost, or several parts.

    Attributes:
        hours: of all devices together.
        hardware: names of what they are hours of.
    """

    hours: float
    hardware: frozenset[str] = frozenset()

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.hours + other.hours, self.hardware | other.hardware)

    @property
    def mixed(self) -> bool:
        """Whether hours of different hardware are in it."""
        return len(self.hardware) > 1

    @property
    def text(self) -> str:
        """The hours in digits."""
        return f"{self.hours:.2f}" if self.hours >= 0.1 else f"{self.hours:.2g}"


#: What takes no time.
NOTHING = Cost(hours=0)


def cost_of(seconds: float, machine: Mapping[str, Any]) -> Cost:
    """What so much wall time costs.

    Args:
        seconds: of wall time.
        machine: that it was spent on, as a cell says it; empty if nobody knows.
    """
    known = frozenset([hardware_of(machine)]) if machine else frozenset[str]()
    return Cost(int(machine.get("devices", 1)) * seconds / _SECONDS, known)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean over seeds, of at least one."""
    return Cost(fmean(cost.hours for cost in costs), frozenset().union(*(cost.hardware for cost in costs)))


def hardware_of(machine: Mapping[str, Any]) -> str:
    """What a machine is called: by its devices, and those of a CPU by their threads; not by which of several GPUs."""
    kind = str(machine.get("device", "unknown")).partition(":")[0]
    name = f"{kind} ({machine['hardware']})" if machine.get("hardware") else kind
    devices = int(machine.get("devices", 1))
    several = f"{devices} × " if devices > 1 else ""
    return f"{several}{name}" + (f", {machine['threads']} threads" if kind == "cpu" and "threads" in machine else "")
