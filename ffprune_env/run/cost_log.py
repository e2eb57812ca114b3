"""``cost.jsonl``: what a run has cost, written as it goes, so that what a process spent that was cut off counts too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ffprune_env.evaluators.ledger import PARTS, Ledger, Part, in_sum
from ffprune_env.lm.cost import Cost


@dataclass(frozen=True)
class _Line:
    """What was added to a part of a run.

    Attributes:
        part: which.
        step: evaluations that had been made by then.
        cost: how much.
    """

    part: Part
    step: int
    cost: Cost


class CostLog(Ledger):
    """A ledger that begins with what processes before this one spent on the same run, and is kept in a file.

    What a process did after its last line is not known: an evaluation under way, or the re-fitting of what was chosen,
    which is made again.

    Args:
        path: the file; it may not exist yet. A line that was cut off is dropped.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._before = _read(path)
        self._torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self._saved: dict[Part, Cost] = {}

    @property
    def parts(self) -> dict[Part, Cost]:
        """What every part has cost in all processes."""
        return self._with(self._before)

    def by(self, step: int) -> Cost:
        """All that was spent by the time that so many evaluations had been made, also where they are made again."""
        return in_sum(self._with([line for line in self._before if line.step <= step]))

    def save(self, step: int) -> None:
        """Adds to the file what was spent in this process and is not there yet.

        Args:
            step: evaluations that have been made.

        Raises:
            OSError: it cannot be written.
        """
        own = super().parts
        lines = [
            json.dumps({"part": name, "step": step, **asdict(cost - self._saved.get(name, Cost()))}) + "\n"
            for name, cost in own.items()
            if cost != self._saved.get(name)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self._torn else "") + "".join(lines))
        self._saved, self._torn = own, False

    def _with(self, before: list[_Line]) -> dict[Part, Cost]:
        found = super().parts
        for line in before:
            found[line.part] = found.get(line.part, Cost()) + line.cost
        return {name: found[name] for name in PARTS if name in found}


def _read(path: Path) -> list[_Line]:
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            content = json.loads(line)
            part, step = content.pop("part"), content.pop("step")
            numbers = all(isinstance(x, int | float) for x in (step, *content.values()))
            if part in PARTS and numbers:
                lines.append(_Line(part, step, Cost(**content)))
        except (ValueError, TypeError, KeyError, AttributeError):  # cut off
            continue
    return lines
