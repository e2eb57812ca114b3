"""The four tables, before anything is known of the format they are written in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ffprune_env.comparison.paper_tables.contents import EVOLUTION, OURS, Line, PaperTable
from ffprune_env.comparison.paper_tables.measured import MIXED_MARK, OTHERWISE_MARK, Measured, label_entry
from ffprune_env.comparison.paper_tables.printed import PAPER_MODELS, SOURCE
from ffprune_env.comparison.report.grids import (
    NONE,
    Column,
    Entry,
    Grid,
    fell_back_note,
    lacks_update_note,
    rebuild_note,
)
from ffprune_env.comparison.report.rows import code
from ffprune_env.methods.warm_start import SHARE
from ffprune_env.texts.bos import stated

#: lm-eval's names of the seven tasks, in the order of the paper, and what the paper calls them.
TASKS = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
    "average": "Average",
}


@dataclass(frozen=True)
class SparsityGrid(Grid):
    """A table whose rows are of several sparsities, named in its second column: the best is marked for each."""

    def best(self) -> set[tuple[int, int]]:
        """Row and column of the best entries at every sparsity; the dense model takes no part."""
        found = set()
        for sparsity in dict.fromkeys(row[1].text for row in self.rows[1:]):
            places = [0, *(i for i, row in enumerate(self.rows) if i and row[1].text == sparsity)]
            part = Grid(self.columns, [self.rows[i] for i in places], [])
            found |= {(places[i], j) for i, j in part.best()}
        return found


def grids_of(table: PaperTable, models: Sequence[Measured]) -> list[tuple[str, Grid]]:
    """The tables with their titles: one, in which all models stand beside each other, or one for every model.

    Args:
        table: which.
        models: what was measured of each.
    """
    title = f"Table {table.number}. {table.caption}"
    if table.several:
        return [(title, _side_by_side(table, models))]
    make = _zero_shot if table.zero_shot else _costs
    return [(f"{title} {one.model}", make(table, one)) for one in models]


def _zero_shot(table: PaperTable, one: Measured) -> Grid:
    columns = [Column("method", "method"), *(Column(title, title, "max") for title in TASKS.values())]
    rows = [[Entry("dense"), *(_accuracy(table, one, None, 0, task) for task in TASKS)]]
    for sparsity, line in _lines(table):
        accuracies = (_accuracy(table, one, line, sparsity, task) for task in TASKS)
        rows.append([label_entry(one.label(line), one.rows([(line, sparsity)])), *accuracies])
    notes = [
        "± is the standard error over questions; both are means over seeds. acc of BoolQ and WinoGrande, acc_norm of "
        "the others."
    ]
    limit = None if one.comparison is None else one.comparison.settings.get("zero_shot_limit", "none yet")
    if limit is not None:
        notes.append(f"Questions of every task that were asked, from the first: {limit}.")
    if one.comparison is not None and one.comparison.settings.get("zero_shot_unseen"):
        notes.append("They are of the half of every task that no search with it as a reward sees.")
    return Grid(columns, rows, [*notes, *_notes(table, [one])])


def _accuracy(table: PaperTable, one: Measured, line: Line | None, sparsity: float, task: str) -> Entry:
    label = "dense" if line is None else one.label(line)
    return one.beside(one.accuracy(line, sparsity, task), table.number, label, sparsity, task)


def _side_by_side(table: PaperTable, models: Sequence[Measured]) -> Grid:
    columns = [
        Column("method", "method"),
        Column("sparsity", "sparsity"),
        *(Column(one.model, one.model, "min") for one in models),
    ]
    dense = [one.beside(one.dense_perplexity(), table.number, "dense", 0, "ppl") for one in models]
    rows = [[Entry("dense"), Entry("0 %"), *dense]]
    for sparsity, line in _lines(table):
        found = [
            one.beside(one.perplexity(line, sparsity), table.number, line.label, sparsity, "ppl") for one in models
        ]
        name = label_entry(line.label, [row for one in models for row in one.rows([(line, sparsity)])])
        rows.append([name, _percent(sparsity), *found])
    return SparsityGrid(columns, rows, _notes(table, models))


def _costs(table: PaperTable, one: Measured) -> Grid:
    columns = [
        Column("method", "method"),
        Column("sparsity", "sparsity"),
        Column("search cost (device-hours)", "search cost\n(device-h)"),
        Column("total cost (device-hours)", "total cost\n(device-h)"),
        Column("search tokens", "search\ntokens"),
        Column("candidates measured", "candidates"),
        Column("PPL", "PPL", "min"),
    ]
    none = Entry(NONE)
    dense = one.beside(one.dense_perplexity(), table.number, "dense", 0, "ppl")
    rows = [[Entry("dense"), Entry("0 %"), none, none, none, none, dense]]
    for sparsity, line in _lines(table):
        row = one.row(line, sparsity)
        entries = (*one.costs(line, sparsity), one.perplexity(line, sparsity))
        search, total, ppl = (
            one.beside(entry, table.number, line.label, sparsity, column)
            for entry, column in zip(entries, ("search", "total", "ppl"), strict=True)
        )
        tokens = none if row is None or not row.search else Entry(f"{row.tokens / 1e6:.3g} M")
        counted = None if row is None or not row.search else row.candidates
        candidates = none if counted is None else Entry(f"{counted:,.0f}")
        name = label_entry(line.label, one.rows([(line, sparsity)]))
        rows.append([name, _percent(sparsity), search, total, tokens, candidates, ppl])
    notes = [
        f"{_hardware(table, one)} The search cost holds start, search and last look; the total also the calibration of "
        "the row's own model, and ranking and calibration text, which all that remove groups share.",
        "A budget is windows of search text: of candidates that are measured on fewer than N_max windows, as the "
        "paper's curriculum begins, it lasts for more than its number of evaluations.",
        f"Warm-started: {code(OURS)} at 30 % from what it found at 20 %, with {SHARE:.0%} of the budget. Its cost "
        "holds that of 20 %; what it adds is marked, and its tokens are its own.",
    ]
    return SparsityGrid(columns, rows, [*notes, *_notes(table, [one])])


def _hardware(table: PaperTable, one: Measured) -> str:
    """What hours are of: one name, or who was measured on which hardware."""
    shared = one.preparation()
    spent = [] if shared is None else [("ranking and calibration text", shared)]
    for sparsity, line in _lines(table):
        label = f"{line.label} at {100 * sparsity:g} %"
        spent += [(label, one.search_cost(row)) for row in one.rows([(line, sparsity)])]
    who: dict[str, list[str]] = {}
    for label, cost in spent:
        for name in sorted(cost.hardware):
            who.setdefault(name, []).append(label)
    if len(who) < 2:
        return f"Device: {next(iter(who), NONE)}."
    listed = "; ".join(f"{name}: {', '.join(labels)}" for name, labels in who.items())
    return f"{MIXED_MARK} Adds up hours of different hardware, which do not compare. {listed}."


def _lines(table: PaperTable) -> Iterable[tuple[float, Line]]:
    return ((sparsity, line) for sparsity, lines in table.lines.items() for line in lines)


def _percent(sparsity: float) -> Entry:
    return Entry(f"{100 * sparsity:g} %")


def _notes(table: PaperTable, models: Sequence[Measured]) -> list[str]:
    rows = [row for one in models for row in one.rows([(line, sparsity) for sparsity, line in _lines(table)])]
    methods = dict.fromkeys(line.method for _, line in _lines(table))
    notes = [
        f"Ours is {code(OURS)}, sparsity a fraction of all weights that can be pruned. Bold: best below the dense "
        f"model. {NONE}: not measured yet; the same command goes on."
    ]
    if EVOLUTION in methods:
        notes.append(
            f"evolution is {code(EVOLUTION)}, with the same ranking, budget and calibration as ours (docs/methods.md)."
        )
    if any(one.comparison is not None and one.comparison.settings.get("calibration") == "none" for one in models):
        notes.append(f"--calibration none: what is to be calibrated stays {NONE}.")
    return [
        *notes,
        *_seeds(table, models),
        *_of_paper(table, models),
        *_measured_on(models),
        *rebuild_note(rows),
        *lacks_update_note(rows),
        *fell_back_note(rows),
    ]


def _seeds(table: PaperTable, models: Sequence[Measured]) -> list[str]:
    """How many seeds the searches are means over, and which are where that differs."""
    whose: dict[int, list[str]] = {}
    for sparsity, line in _lines(table):
        for one in models:
            row = one.row(line, sparsity)
            if row is not None and row.seeds is not None:
                of = f" of {one.model}" if len(models) > 1 else ""
                whose.setdefault(row.seeds, []).append(f"{one.label(line)} at {100 * sparsity:g} %{of}")
    if len(whose) < 2:
        return [f"Seeds of every search: {n}." for n in whose]
    return ["Seeds: " + "; ".join(f"{n}: {', '.join(labels)}" for n, labels in sorted(whose.items())) + "."]


def _of_paper(table: PaperTable, models: Sequence[Measured]) -> list[str]:
    there = [one for one in models if one.model in PAPER_MODELS]
    if not there:
        return ["None of these models is in the paper, so no figure of the paper stands beside ours."]
    notes = [f"{SOURCE} paper {NONE}: could not be read there, or is not printed."]
    column, how = ("average", "all questions") if table.zero_shot else ("ppl", "all of WikiText-2's test text by 2048")
    if not all(one.as_printed(column) for one in there):
        notes.append(f"{OTHERWISE_MARK} The paper's figure is of {how}, ours is not: the two do not compare.")
    return notes


def _measured_on(models: Sequence[Measured]) -> list[str]:
    """One line for each way of measuring that there is."""
    names: dict[str, list[str]] = {}
    for one in models:
        if one.comparison is not None:
            names.setdefault(_way(one.comparison.settings), []).append(one.model)
    if len(names) == 1:
        return list(names)
    return [f"{', '.join(models)}: {way}" for way, models in names.items()]


def _way(settings: dict[str, object]) -> str:
    text, test = settings.get("text"), settings.get("test_text") or settings.get("text")
    how, calibrated_on = settings.get("calibration"), settings.get("calibration_text") or text
    by = f"Searched on {_name(text)}, ranked and calibrated ({how}) on {_name(calibrated_on)}"
    shown = {"budget": settings.get("evaluations"), "N_max": settings.get("search_windows")}
    bos = stated(str(settings.get("bos", "never")))
    return (
        f"{by}, tested on "
        f"{settings.get('test_windows')} windows of {settings.get('test_seq_len')} tokens{bos} of {_name(test)}; "
        f"budget of {shown['budget']} evaluations on {shown['N_max']} windows of {settings.get('seq_len')} tokens, "
        f"{settings.get('calibration_windows')} windows of calibration text, criterion {settings.get('criterion')}."
    )


def _name(text: object) -> str:
    return str(text).replace("\\", "/").rpartition("/")[2]
