"""Rows of a report: one method at one sparsity over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ffprune_env.comparison.cell import Cell, Comparison

#: Heuristics by name; so is every other method that removes groups and does not search, whatever text it looks at.
HEURISTICS = ("uniform", "ffn-only", "flap")


@dataclass(frozen=True)
class Spread:
    """Mean, lowest and highest value over seeds; not finite where one of the seeds is not."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One method at one sparsity.

    Attributes:
        method: its name.
        cells: one per seed.
    """

    method: str
    cells: tuple[Cell, ...]

    @property
    def seeds(self) -> int | None:
        """How many seeds were run; None if the method draws nothing."""
        return None if self.cells[0].seed is None else len(self.cells)

    @property
    def rebuilds(self) -> bool:
        """Whether the method removes no groups but rebuilds the weights."""
        return all(cell.kept is None for cell in self.cells)

    @property
    def heuristic(self) -> bool:
        """Whether the method removes groups without having searched."""
        return not self.rebuilds and (self.method in HEURISTICS or not any(cell.trace for cell in self.cells))

    @property
    def search(self) -> bool:
        """Whether the method searched for the groups it removes."""
        return not self.rebuilds and not self.heuristic

    @property
    def joint(self) -> bool:
        """Whether one search answered this sparsity and others."""
        return any(len(cell.settings.get("targets", ())) > 1 for cell in self.cells)

    @property
    def fell_back(self) -> bool:
        """Whether the final model of a seed is not calibrated as it was to be."""
        return any(cell.fell_back for cell in self.cells)

    @property
    def lacks_update(self) -> int:
        """Matrices that go without SVD-LLM's update of their factors, for want of calibration text."""
        return max(cell.lacks_update for cell in self.cells)

    @property
    def plain(self) -> Spread:
        """Test perplexity without calibration."""
        return _spread(cell.test_ppl for cell in self.cells)

    @property
    def calibrated(self) -> Spread | None:
        """Test perplexity with calibration, of the seeds that have one."""
        values = [cell.calibrated_test_ppl for cell in self.cells if cell.calibrated_test_ppl is not None]
        return _spread(values) if values else None

    @property
    def final(self) -> Spread:
        """Test perplexity of what the user gets: calibrated, if there is a calibration."""
        return self.calibrated or self.plain

    @property
    def final_interval(self) -> tuple[float, float] | None:
        """95 % interval of the final perplexity, widened to cover those of all seeds; None where a seed has none."""
        of_all = [
            cell.test_interval if cell.calibrated_test_ppl is None else cell.calibrated_test_interval
            for cell in self.cells
        ]
        known = [interval for interval in of_all if interval is not None]
        return (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(of_all) else None

    @property
    def sparsity(self) -> float | None:
        """Fraction of Σw removed, mean over seeds; None for methods that remove no groups."""
        values = [cell.sparsity for cell in self.cells if cell.sparsity is not None]
        return fmean(values) if values else None

    @property
    def total_sparsity(self) -> float:
        """Fraction of all parameters of the model removed, mean over seeds."""
        return fmean(cell.total_sparsity for cell in self.cells)

    @property
    def evaluations(self) -> float:
        """What the method was charged, in measurements on as many windows as --search-windows says, mean over seeds."""
        return fmean(cell.evaluations for cell in self.cells)

    @property
    def tokens(self) -> float:
        """Tokens of search text that the method was charged, mean over seeds."""
        return fmean(cell.tokens for cell in self.cells)

    @property
    def tokens_seen(self) -> float | None:
        """Tokens of search text that the model read, mean over seeds; None where that was not recorded."""
        seen = [cell.tokens_seen for cell in self.cells if cell.tokens_seen is not None]
        return fmean(seen) if len(seen) == len(self.cells) else None

    @property
    def candidates(self) -> float | None:
        """Candidates that the search measured, mean over seeds; None where that was not recorded."""
        known = [cell.candidates for cell in self.cells if cell.candidates is not None]
        return fmean(known) if len(known) == len(self.cells) else None

    @property
    def seconds(self) -> float:
        """Duration of the search, mean over seeds."""
        return fmean(cell.seconds for cell in self.cells)


def target_sparsities(comparison: Comparison) -> list[float]:
    """The sparsities that were asked for, ascending."""
    return sorted({cell.target_sparsity for cell in comparison.cells})


def methods(comparison: Comparison) -> list[str]:
    """All methods, in the order of the comparison."""
    return list(dict.fromkeys(cell.method for cell in comparison.cells))


def rows_at(comparison: Comparison, sparsity: float) -> list[Row]:
    """The methods at one sparsity, best final test perplexity first.

    Args:
        comparison: what was measured.
        sparsity: σ that was asked for, one of the comparison's.

    Raises:
        ValueError: nothing was measured at that sparsity.
    """
    cells = [cell for cell in comparison.cells if cell.target_sparsity == sparsity]
    if not cells:
        known = ", ".join(f"{x:g}" for x in target_sparsities(comparison)) or "none"
        raise ValueError(f"nothing was measured at sparsity {sparsity:g}; measured were {known}")
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.method, []).append(cell)
    rows = [Row(method, tuple(group)) for method, group in groups.items()]
    return sorted(rows, key=lambda row: sortable(row.final.mean))


def find(rows: Sequence[Row], method: str) -> Row | None:
    """The row of a method, if there is one."""
    return next((row for row in rows if row.method == method), None)


def left_out(rows: Sequence[Row]) -> list[Row]:
    """The rows of one table that are not compared with the others, since their final models are calibrated otherwise.

    Of those that were to be calibrated in sequence these are the ones where a seed was not, unless all of all were
    calibrated in one other way. Methods with a calibration of their own, or none, are what was asked for.
    """
    fell_back = [row for row in rows if row.fell_back]
    asked = {cell.calibration_asked for row in fell_back for cell in row.cells}
    kinds = {cell.calibration for row in rows for cell in row.cells if cell.calibration_asked in asked}
    return fell_back if len(kinds) > 1 else []


def code(name: object) -> str:
    """A name from outside in backticks, which itself holds none and is one line."""
    return f"`{' '.join(str(name).replace('`', chr(39)).split())}`"


def ppl_text(ppl: float) -> str:
    """A perplexity for people; ``inf`` and ``nan`` are printed as such."""
    if not math.isfinite(ppl):
        return f"{ppl}"
    return f"{ppl:.2f}" if ppl < 1000 else f"{ppl:,.0f}" if ppl < 1e6 else f"{ppl:.2e}"


def sortable(ppl: float) -> float:
    """A perplexity to sort by: what is not a number is as bad as infinite."""
    return math.inf if math.isnan(ppl) else ppl


def _spread(values: Iterable[float]) -> Spread:
    array = np.array(list(values), dtype=np.float64)
    return Spread(float(array.mean()), float(array.min()), float(array.max()))
