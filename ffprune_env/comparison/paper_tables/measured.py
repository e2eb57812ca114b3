"""What stands in one place of a table: what was measured of one model, and the paper's own figure beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ffprune_env.comparison.cell import Cell, Comparison
from ffprune_env.comparison.paper_tables.contents import OTHER_TEXT, Line
from ffprune_env.comparison.paper_tables.printed import PAPER_MODELS, printed
from ffprune_env.comparison.report.grids import NONE, Entry, name_entry, perplexity_entry
from ffprune_env.comparison.report.rows import Row, ppl_text

_SECONDS = 3600


@dataclass(frozen=True)
class Measured:
    """What was measured of one model.

    Attributes:
        model: its name.
        comparison: of the dense model and of all cells; None if nothing was measured yet.
        other: the same, calibrated on the other text.
        prepared: seconds that ranking and calibration took; None if that was not recorded.
        other_text: name of that text.
        devices: that the model was spread over.
    """

    model: str
    comparison: Comparison | None
    other: Comparison | None = None
    prepared: float | None = None
    other_text: str = OTHER_TEXT
    devices: int = 1

    def label(self, line: Line) -> str:
        """What a row is called: one that is calibrated on another text than the paper's by that text."""
        if not line.other_text or self.other_text == OTHER_TEXT:
            return line.label
        return line.label.replace(OTHER_TEXT.upper(), Path(self.other_text).stem)

    def row(self, line: Line, sparsity: float) -> Row | None:
        """The cells behind a row, one per seed; None where there are none yet."""
        return self._row(line.method, sparsity, line.other_text)

    def rows(self, lines: Sequence[tuple[Line, float]]) -> list[Row]:
        """Those rows of several that there are."""
        found = (self.row(line, sparsity) for line, sparsity in lines)
        return [row for row in found if row is not None]

    def _row(self, method: str, sparsity: float, other_text: bool = False) -> Row | None:
        comparison = self.other if other_text else self.comparison
        cells = () if comparison is None else comparison.cells
        chosen = [cell for cell in cells if (cell.method, cell.target_sparsity) == (method, sparsity)]
        return Row(method, tuple(chosen)) if chosen else None

    def beside(self, entry: Entry, table: int, label: str, sparsity: float, column: str) -> Entry:
        """An entry with the paper's figure beside it, if the model is one of the paper's."""
        if self.model not in PAPER_MODELS:
            return entry
        figure = printed(table, self.model, label, sparsity, column)
        paper = f"paper {NONE if figure is None else f'{figure:.2f}'}"
        return replace(entry, detail=f"{entry.detail}; {paper}" if entry.detail else paper)

    def perplexity(self, line: Line, sparsity: float) -> Entry:
        """Test perplexity of a row, mean over seeds, and the range if there are several."""
        row = self.row(line, sparsity)
        return Entry(NONE) if row is None else perplexity_entry(row.plain if line.cut else row.final)

    def dense_perplexity(self) -> Entry:
        """Test perplexity of the dense model."""
        return Entry(NONE if self.comparison is None else ppl_text(self.comparison.dense_test_ppl))

    def accuracy(self, line: Line | None, sparsity: float, task: str) -> Entry:
        """Accuracy of a row on a task, in percent; of the dense model without a row."""
        if line is None:
            scores = None if self.comparison is None else self.comparison.dense_zero_shot
            errors = None if self.comparison is None else self.comparison.dense_zero_shot_stderr
        else:
            row = self.row(line, sparsity)
            asked = [cell for cell in (() if row is None else row.cells) if cell.zero_shot is not None]
            scores, errors = (asked[0].zero_shot, asked[0].zero_shot_stderr) if asked else (None, None)
        if scores is None or task not in scores:
            return Entry(NONE)
        error = (errors or {}).get(task)
        return Entry(f"{100 * scores[task]:.2f}", "" if error is None else f"± {100 * error:.1f}", scores[task])

    def costs(self, line: Line, sparsity: float) -> tuple[Entry, Entry]:
        """Device-hours of the search of a row and of all that it takes, means over seeds.

        A search that starts from another one costs what that cost and its own, which is what it adds: that is marked.
        Whoever rebuilds the weights calibrates by itself; all others need the ranking and the calibration too.
        """
        row = self.row(line, sparsity)
        if row is None:
            return Entry(NONE), Entry(NONE)
        own, before = row.seconds, self._seconds_before(row.cells[0])
        shared = 0.0 if row.rebuilds else self.prepared
        if before is None or shared is None:
            return Entry(NONE), Entry(NONE)
        added = f"{self._hours(own)} more" if row.cells[0].settings.get("warm") else ""
        search = Entry(self._hours(before + own), added) if row.search else Entry(NONE)
        return search, Entry(self._hours(before + own + shared), added)

    def _hours(self, seconds: float) -> str:
        """Device-hours of a wall time."""
        hours = self.devices * seconds / _SECONDS
        return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"

    def _seconds_before(self, cell: Cell) -> float | None:
        """What the search cost that this one starts from, in the mean over seeds; None if it is not there."""
        warm = cell.settings.get("warm")
        if not warm:
            return 0.0
        before = self._row(warm["method"], warm["sparsity"])
        return None if before is None else before.seconds


def label_entry(label: str, rows: Sequence[Row]) -> Entry:
    """The label of a row, with the marks that any of its cells have."""
    marks = dict.fromkeys(mark for row in rows for mark in name_entry(row).text.removeprefix(row.method).split())
    return Entry(" ".join([label, *marks]))
