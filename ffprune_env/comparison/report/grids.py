"""The tables of a report, before anything is known of the format they are written in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.rows import (
    Row,
    Spread,
    code,
    find,
    left_out,
    ppl_text,
    rows_at,
)
from ffprune_env.lm.excess import change, share_removed
from ffprune_env.lm.intervals import LEAST_WINDOWS, neighbours_note
from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK, ONE_SEED_FELL_BACK

NONE = "–"
_MARK = " †"
_LACKS_UPDATE_MARK = " §"


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        text: as it is printed.
        detail: what is printed smaller beside it.
        value: what the entries of a column are compared by; None takes no part.
    """

    text: str
    detail: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Column:
    """A column: names on the left, numbers on the right.

    Attributes:
        title: of the column.
        short: its title on the terminal, which does without the column if there is none.
        best: ``min`` or ``max``, whichever is to be marked; nothing is, if it is empty.
    """

    title: str
    short: str = ""
    best: str = ""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        columns: the first holds the names.
        rows: entries, one list per row; the first row is the dense model.
        notes: lines under the table, with names in backticks.
    """

    columns: list[Column]
    rows: list[list[Entry]]
    notes: list[str]

    def best(self) -> set[tuple[int, int]]:
        """Row and column of the best entries; equal ones are all best, and the dense model takes no part."""
        found = set()
        for j, column in enumerate(self.columns):
            values = {i: row[j].value for i, row in enumerate(self.rows) if i > 0}
            finite = {i: x for i, x in values.items() if x is not None and math.isfinite(x)}
            if column.best and finite:
                best = min(finite.values()) if column.best == "min" else max(finite.values())
                found |= {(i, j) for i, x in finite.items() if x == best}
        return found


def perplexity_grid(comparison: Comparison, sparsity: float) -> Grid:
    """All methods at one sparsity, best final test perplexity first, below the dense model.

    Args:
        comparison: what was measured.
        sparsity: σ that was asked for, one of the comparison's.
    """
    rows = rows_at(comparison, sparsity)
    dense, uniform = comparison.dense_test_ppl, find(rows, "uniform")
    reference = "uniform, calibrated" if uniform is not None and uniform.calibrated else "uniform"
    columns = [
        Column("method", "method"),
        Column("seeds", "seeds"),
        Column("removed of Σw"),
        Column("removed of model", "removed\nof model"),
        Column("test PPL", "test PPL", best="min"),
        Column("test PPL, calibrated", "calibrated", best="min"),
        Column(f"change against {reference}", "change", best="min"),
        Column(f"share of e({reference}) removed", best="max"),
        Column("search evaluations", "search\nevals"),
        Column("search tokens read"),
        Column("search tokens charged"),
        Column("search seconds", "search\nsecs"),
    ]
    none = Entry(NONE)
    apart = left_out(rows)
    base = None if uniform in apart else uniform  # nothing is compared across calibrations
    measured = [Entry(ppl_text(dense)), none, *_against(dense, base, dense)]
    entries = [[Entry("dense"), none, none, none, *measured, none, none, none, none]]
    for row in rows:
        entries.append(
            [
                name_entry(row),
                none if row.seeds is None else Entry(f"{row.seeds}"),
                none if row.sparsity is None else Entry(f"{row.sparsity:.2%}"),
                Entry(f"{row.total_sparsity:.2%}"),
                perplexity_entry(row.plain),
                none if row.calibrated is None else perplexity_entry(row.calibrated, row not in apart),
                *_against(row.final.mean, None if row in apart else base, dense),
                Entry(f"{row.evaluations:,.0f}" if row.evaluations >= 10 else f"{row.evaluations:.2g}"),
                none if row.tokens_seen is None else Entry(_tokens(row.tokens_seen)),
                Entry(_tokens(row.tokens)),
                Entry(f"{row.seconds:,.0f}" if row.seconds >= 10 else f"{row.seconds:.1f}"),
            ]
        )
    return Grid(columns, entries, _perplexity_notes(comparison, rows, uniform))


def zero_shot_grid(comparison: Comparison, sparsity: float) -> Grid | None:
    """Zero-shot accuracy at one sparsity, best average first, below the dense model; None if none was measured."""
    rows = rows_at(comparison, sparsity)
    scores = {row.method: mean_scores([cell.zero_shot for cell in row.cells]) for row in rows}
    errors = {row.method: mean_scores([cell.zero_shot_stderr for cell in row.cells]) for row in rows}
    tested = sorted((row for row in rows if scores[row.method]), key=lambda row: -scores[row.method].get("average", 0))
    if not tested:
        return None
    apart = left_out(rows)
    dense = comparison.dense_zero_shot or {}
    tasks = sorted(
        {**dense, **{task: 0 for row in tested for task in scores[row.method]}}, key=lambda x: x == "average"
    )
    columns = [Column("method", "method"), *(Column(task, task, best="max") for task in tasks)]
    errors_of_dense = comparison.dense_zero_shot_stderr or {}
    entries = [[Entry("dense"), *(_accuracy(dense.get(task), errors_of_dense.get(task)) for task in tasks)]]
    for row in tested:
        one, error, compared = scores[row.method], errors[row.method], row not in apart
        entries.append([name_entry(row), *(_accuracy(one.get(task), error.get(task), compared) for task in tasks)])
    notes = [
        "Zero-shot accuracy of the final models, ± standard error over questions, mean over seeds that were tested: "
        "acc of boolq and winogrande, acc_norm of others, as in the paper. Bold: best of its column."
    ]
    if "zero_shot_limit" in comparison.settings:
        limit = comparison.settings["zero_shot_limit"]
        which = "All questions" if limit is None else f"The first {limit} questions"
        unseen = " that no search with it as a reward sees" if comparison.settings.get("zero_shot_unseen") else ""
        notes.append(f"{which} of every task{unseen} were asked.")
    marks = [*rebuild_note(tested), *lacks_update_note(tested), *fell_back_note(tested)]
    return Grid(columns, entries, [*notes, *marks])


def settings_items(comparison: Comparison) -> list[tuple[str, str]]:
    """Settings of the comparison as pairs of texts, without the command."""
    items = [(key.replace("_", " "), _setting(value)) for key, value in comparison.settings.items() if key != "command"]
    return [*items, ("parameters, dense", f"{comparison.n_params:,}")]


def command_line(comparison: Comparison) -> str | None:
    """The command that made the comparison, if the settings hold it."""
    command = comparison.settings.get("command")
    return (
        " ".join(map(str, command)) if isinstance(command, list | tuple) else None if command is None else str(command)
    )


def name_entry(row: Row) -> Entry:
    """The name of a method, marked where something about it has a note."""
    marks = _MARK * row.rebuilds + f" {FELL_BACK_MARK}" * row.fell_back + _LACKS_UPDATE_MARK * bool(row.lacks_update)
    return Entry(row.method + marks)


def perplexity_entry(spread: Spread, compared: bool = True) -> Entry:
    """A perplexity over seeds, which takes part in the choice of the best if it can be compared."""
    one = spread.low == spread.high or math.isnan(spread.mean)
    detail = "" if one else f"{ppl_text(spread.low)}{NONE}{ppl_text(spread.high)}"
    return Entry(ppl_text(spread.mean), detail, spread.mean if compared else None)


def mean_scores(by_seed: Sequence[dict[str, float] | None]) -> dict[str, float]:
    """Mean per task, over the seeds that were tested on it.

    Args:
        by_seed: accuracies, or standard errors, by task; None of a seed that was not tested.
    """
    measured = [one for one in by_seed if one]
    tasks = dict.fromkeys(task for one in measured for task in one)
    return {task: fmean(one[task] for one in measured if task in one) for task in tasks}


def _against(ppl: float, uniform: Row | None, dense: float) -> list[Entry]:
    """Change of the perplexity against `uniform`, and share of the excess of `uniform` that is gone."""
    if uniform is None:
        return [Entry(NONE)] * 2
    base = uniform.final.mean
    values = (change(ppl, base), share_removed(ppl, base, dense))
    texts = (f"{values[0]:+.1%}", f"{values[1]:.1%}")
    return [Entry("nan" if math.isnan(x) else text, value=x) for x, text in zip(values, texts, strict=True)]


def _perplexity_notes(comparison: Comparison, rows: Sequence[Row], uniform: Row | None) -> list[str]:
    means = "Means over seeds, with the lowest and the highest seed; no seeds: the method draws nothing."
    order = "Sorted by test PPL with calibration, or without where there is none"
    if uniform is not None:
        order += f", from whose mean the change against {code('uniform')} and its share of e removed are made: "
        order += "e(x) = ln PPL(x) - ln PPL(dense)"
    asked = {"dense": comparison.dense_interval}
    asked |= {row.method: row.final_interval for row in rows if row is rows[0] or row is uniform}
    known = {name: interval for name, interval in asked.items() if interval is not None}
    intervals = ", ".join(f"{code(name)} {ppl_text(low)} to {ppl_text(high)}" for name, (low, high) in known.items())
    if known:
        uncertain = "95% intervals of that test PPL, by Student's t over the losses of test windows "
        uncertain += f"({neighbours_note()}): {intervals}. "
        uncertain += "All methods see the same windows, so differences between them are less uncertain than these."
    else:
        uncertain = f"No intervals: they need {LEAST_WINDOWS} test windows, and finite losses."
    windows = comparison.settings.get("search_windows")
    evaluations = "A search evaluation is a measurement on "
    evaluations += (
        "as many windows as --search-windows says" if windows is None else f"{windows} windows of search text"
    )
    charged = "A token that gradients are taken on is read once and charged as three."
    return [
        f"{means} Bold: best of its column. {evaluations}. {charged}",
        f"{order}.",
        uncertain,
        *joint_note(rows),
        *rebuild_note(rows),
        *lacks_update_note(rows),
        *fell_back_note(rows),
    ]


def joint_note(rows: Sequence[Row]) -> list[str]:
    """The note on methods that answer several sparsities by one search, if there are any."""
    names = " and ".join(code(name) for name in dict.fromkeys(row.method for row in rows if row.joint))
    note = (
        f"{names}: one search for all σ of the comparison; what it was charged and its seconds are shared out equally."
    )
    return [note] if names else []


def rebuild_note(rows: Sequence[Row]) -> list[str]:
    """The note on methods that rebuild weights, if there are any."""
    note = f"{_MARK.strip()} Rebuilds the weights instead of removing groups; at equal removed parameters of the model."
    return [note] if any(row.rebuilds for row in rows) else []


def lacks_update_note(rows: Sequence[Row]) -> list[str]:
    """The note on methods that went without a part of themselves, if there are any."""
    lacking = max((row.lacks_update for row in rows), default=0)
    note = (
        f"{_LACKS_UPDATE_MARK.strip()} {lacking} of its matrices go without the update of their factors, which the "
        "calibration text is too short for: with more of it the method does better."
    )
    return [note] if lacking else []


def fell_back_note(rows: Sequence[Row]) -> list[str]:
    """The note on methods that were not calibrated as asked, if there are any."""
    return [ONE_SEED_FELL_BACK] if any(row.fell_back for row in rows) else []


def _accuracy(score: float | None, error: float | None, compared: bool = True) -> Entry:
    if score is None:
        return Entry(NONE)
    detail = "" if error is None else f"± {100 * error:.1f}"
    return Entry(f"{score:.1%}", detail, score if compared else None)


def _tokens(count: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(x) for x in value)
    return NONE if value is None else str(value)
