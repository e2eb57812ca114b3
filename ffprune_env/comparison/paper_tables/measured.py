"""What stands in one place of a table: what was measured of one model, and the paper's own figure beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ffprune_env.comparison.cell import Cell, Comparison
from ffprune_env.comparison.paper_tables.contents import OTHER_TEXT, Line
from ffprune_env.comparison.paper_tables.costs import NOTHING, Cost, cost_of, mean_cost
from ffprune_env.comparison.paper_tables.printed import PAPER_MODELS, printed
from ffprune_env.comparison.report.grids import NONE, Entry, mean_scores, name_entry, perplexity_entry
from ffprune_env.comparison.report.rows import Row, ppl_text

#: Behind hours that are a sum over different hardware.
MIXED_MARK = "¶"
#: Behind a figure of the paper that was measured otherwise than ours beside it.
OTHERWISE_MARK = "§"

# What the paper's perplexities are of: all of WikiText-2's test text in windows of so many tokens, by the names that it
# has: of a text, and of the file that everybody has of it.
_TEST_TEXTS, _TEST_SEQ_LEN = ("wikitext2", "wiki.test.raw"), 2048


@dataclass(frozen=True)
class Measured:
    """What was measured of one model.

    Attributes:
        model: its name.
        comparison: of the dense model and of all cells; None if nothing was measured yet.
        other: the same, calibrated on the other text.
        prepared: seconds that ranking and calibration took; None if that was not recorded.
        other_text: name of that text.
        machine: what that was done on, as the folder says it, and all cells that do not say it themselves; empty if
            nobody knows.
    """

    model: str
    comparison: Comparison | None
    other: Comparison | None = None
    prepared: float | None = None
    other_text: str = OTHER_TEXT
    machine: Mapping[str, Any] = field(default_factory=dict)

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
        mark = "" if figure is None or self.as_printed(column) else f" {OTHERWISE_MARK}"
        paper = f"paper {NONE if figure is None else f'{figure:.2f}'}{mark}"
        return replace(entry, detail=f"{entry.detail}; {paper}" if entry.detail else paper)

    def as_printed(self, column: str) -> bool:
        """Whether what stands in a column was measured as the paper measures it; hours are its own everywhere.

        Args:
            column: ``ppl``, one of hours, or the name of a task.
        """
        settings: Mapping[str, Any] = {} if self.comparison is None else self.comparison.settings
        if column in ("search", "total"):
            return True
        if column != "ppl":
            return settings.get("zero_shot_limit") is None and not settings.get("zero_shot_unseen")
        test = str(settings.get("test_text") or settings.get("text"))
        whole = (settings.get("test_seq_len"), settings.get("test_windows")) == (_TEST_SEQ_LEN, None)
        return whole and Path(test).name in _TEST_TEXTS

    def perplexity(self, line: Line, sparsity: float) -> Entry:
        """Test perplexity of a row, mean over seeds, and the range if there are several.

        A row of models that are calibrated shows none where nothing was calibrated.
        """
        row = self.row(line, sparsity)
        if row is None:
            return Entry(NONE)
        spread = row.plain if line.cut or row.rebuilds else row.calibrated
        return Entry(NONE) if spread is None else perplexity_entry(spread, line.cut or not row.fell_back)

    def dense_perplexity(self) -> Entry:
        """Test perplexity of the dense model."""
        return Entry(NONE if self.comparison is None else ppl_text(self.comparison.dense_test_ppl))

    def accuracy(self, line: Line | None, sparsity: float, task: str) -> Entry:
        """Accuracy of a row on a task, in percent, mean over seeds that were asked; of the dense model without a row.

        A row of models that are calibrated shows none where nothing was calibrated.
        """
        compared = True
        if line is None:
            scores = None if self.comparison is None else self.comparison.dense_zero_shot
            errors = None if self.comparison is None else self.comparison.dense_zero_shot_stderr
        else:
            row = self.row(line, sparsity)
            cells = () if row is None or not finished(row) else row.cells
            compared = row is None or not row.fell_back
            scores = mean_scores([cell.zero_shot for cell in cells])
            errors = mean_scores([cell.zero_shot_stderr for cell in cells])
        if scores is None or task not in scores:
            return Entry(NONE)
        error = (errors or {}).get(task)
        detail = "" if error is None else f"± {100 * error:.1f}"
        return Entry(f"{100 * scores[task]:.2f}", detail, scores[task] if compared else None)

    def costs(self, line: Line, sparsity: float) -> tuple[Entry, Entry]:
        """Device-hours of the search of a row and of all that it takes, means over seeds.

        A search that starts from another one costs what that cost and its own, which is what it adds: that is marked.
        Whoever rebuilds the weights calibrates by itself; all others need the ranking, the calibration text and a
        calibration of their own model too. Hours of different hardware are marked.
        """
        row = self.row(line, sparsity)
        before = None if row is None else self._before(row)
        if row is None or before is None:
            return Entry(NONE), Entry(NONE)
        own = self.search_cost(row)
        added = f"{own.text} more" if row.cells[0].settings.get("warm") else ""
        after = self._after(row)
        search = _hours(before + own, added) if row.search else Entry(NONE)
        return search, Entry(NONE) if after is None else _hours(before + own + after, added)

    def search_cost(self, row: Row) -> Cost:
        """What the answers of a row cost, each on the machine of its cell, in the mean over seeds."""
        return mean_cost([cost_of(cell.seconds, self._machine(cell)) for cell in row.cells])

    def preparation(self) -> Cost | None:
        """What ranking and calibration text cost, which all that remove groups share; None if that is not known."""
        return None if self.prepared is None else cost_of(self.prepared, self.machine)

    def _before(self, row: Row) -> Cost | None:
        """What the searches cost that those of a row start from, seed by seed; None if one of them is not there."""
        warm = row.cells[0].settings.get("warm")
        if not warm:
            return NOTHING
        found = self._row(warm["method"], warm["sparsity"])
        by_seed = {} if found is None else {cell.seed: cell for cell in found.cells}
        started = [by_seed[cell.seed] for cell in row.cells if cell.seed in by_seed]
        return self.search_cost(Row(row.method, tuple(started))) if len(started) == len(row.cells) else None

    def _after(self, row: Row) -> Cost | None:
        """What there is to a row beside its answers; None where that is not known, or was not done."""
        if row.rebuilds:
            return NOTHING
        shared, own = self.preparation(), [self._calibration(cell) for cell in row.cells]
        known = [cost for cost in own if cost is not None]
        if shared is None or len(known) < len(own) or not finished(row):
            return None
        return shared + mean_cost(known)

    def _calibration(self, cell: Cell) -> Cost | None:
        """What the final calibration of a cell cost; that by Eqs. 6-7 took no time to speak of before it was noted."""
        if cell.calibration_seconds is not None:
            return cost_of(cell.calibration_seconds, self._machine(cell))
        return None if cell.calibration == "sequential" else NOTHING

    def _machine(self, cell: Cell) -> Mapping[str, Any]:
        return self.machine if cell.machine is None else cell.machine


def finished(row: Row) -> bool:
    """Whether the models of a row are what its method ends with: rebuilt, or calibrated."""
    return row.rebuilds or row.calibrated is not None


def _hours(cost: Cost, detail: str) -> Entry:
    return Entry(f"{cost.text} {MIXED_MARK}" if cost.mixed else cost.text, detail)


def label_entry(label: str, rows: Sequence[Row]) -> Entry:
    """The label of a row, with the marks that any of its cells have."""
    marks = dict.fromkeys(mark for row in rows for mark in name_entry(row).text.removeprefix(row.method).split())
    return Entry(" ".join([label, *marks]))
