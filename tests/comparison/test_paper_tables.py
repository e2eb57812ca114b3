"""The paper's tables: rows, columns and order, whose figures stand where, and what is said below."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_comparison import DENSE, Page, make_cell, make_comparison, markdown_tables

from ffprune_env.comparison.paper_tables.contents import EVOLUTION, OURS, TABLES
from ffprune_env.comparison.paper_tables.files import write_table
from ffprune_env.comparison.paper_tables.grids import TASKS as COLUMNS
from ffprune_env.comparison.paper_tables.grids import grids_of
from ffprune_env.comparison.paper_tables.measured import Measured
from ffprune_env.comparison.paper_tables.printed import PAPER_MODELS, PRINTED, printed
from ffprune_env.comparison.plan import ANSWERING
from ffprune_env.comparison.rebuilt import REBUILDERS
from ffprune_env.evaluators.zero_shot_tasks import TASKS
from ffprune_env.lm.model_names import HUB_MODELS
from ffprune_env.lm.shapes import SHAPES
from ffprune_env.methods.warm_start import warm_name

WARM = warm_name(OURS)


def cell(method, sparsity, ppl, seconds=3600.0, seed=None, **changes):
    """A cell of which the figures that tables show are known; cut it has ten times the perplexity."""
    like = "slicegpt" if method in REBUILDERS else "ppo" if seed is not None else "flap"
    made = make_cell(like, sparsity, seed, 2, zero_shot=False)
    ppls = {"test_ppl": ppl} if method in REBUILDERS else {"test_ppl": 10 * ppl, "calibrated_test_ppl": ppl}
    return replace(made, method=method, seconds=seconds, tokens=2_000_000, **ppls, **changes)


def measured(model, cells, prepared=360.0, other=None, **changes):
    made = make_comparison((), methods=(), n_layers=2, zero_shot=False)
    made = replace(made, settings={**made.settings, "model": model}, **changes)
    return Measured(model, replace(made, cells=cells), other and replace(made, cells=other), prepared)


def texts(grid):
    return [[entry.text for entry in row] for row in grid.rows]


def labels(grid):
    return [row[0].text.split(" †")[0] for row in grid.rows]


def all_cells():
    """Every cell of the second table."""
    return [
        cell(key.method, key.sparsity, 20 + i, seed=key.seed)
        for i, key in enumerate(dict.fromkeys([*TABLES[2].keys(1), *TABLES[3].keys(1)]))
    ]


def test_all_tables_ask_for_methods_that_there_are_what_needs_no_search_first():
    for table in TABLES.values():
        for other_text in (False, True):
            keys = table.keys(2, other_text)
            assert len(set(keys)) == len(keys)
            assert all(key.method in (*ANSWERING, *REBUILDERS) for key in keys)
    assert {key.sparsity for key in TABLES[1].keys(1)} == {key.sparsity for key in TABLES[3].keys(1)} == {0.2}
    assert TABLES[1].keys(2, other_text=True) == [(OURS, 0.2, 0), (OURS, 0.2, 1)]
    assert not TABLES[2].keys(1, other_text=True)
    assert TABLES[3].keys(1) == [("uniform", 0.2, None), (OURS, 0.2, 0)]
    fourth = TABLES[4].keys(1)
    assert fourth.index((OURS, 0.2, 0)) < fourth.index((WARM, 0.3, 0))
    assert (WARM, 0.2, 0) not in fourth
    assert (OURS, 0.3, 0) not in fourth
    assert [key.seed for key in fourth] == sorted((key.seed for key in fourth), key=lambda x: -1 if x is None else x)
    assert set(TABLES[3].keys(1)[1:]) < set(TABLES[2].keys(1))  # a search of one serves the other


def test_zero_shot_is_in_the_paper_s_order_in_percent_and_calibrated_on_two_texts():
    accuracies = {task: 0.4 + i / 100 for i, task in enumerate(TASKS)}
    accuracies["average"] = sum(accuracies.values()) / 7
    asked = {"zero_shot": accuracies, "zero_shot_stderr": {"boolq": 0.01}}
    better = {"zero_shot": {**accuracies, "average": 0.5}}
    one = measured(
        "llama-7b",
        [cell("slicegpt", 0.2, 9, **asked), cell(OURS, 0.2, 7, seed=0, **asked), cell(OURS, 0.2, 7, seed=1)],
        other=[cell(OURS, 0.2, 8, seed=0, **better)],
        dense_zero_shot={**accuracies, "boolq": 0.75},
    )
    ((title, grid),) = grids_of(TABLES[1], [one])
    assert title.startswith("Table 1. Zero-shot accuracy (%) on seven")
    assert title.endswith("llama-7b")
    assert tuple(COLUMNS)[:-1] == TASKS
    columns = ["BoolQ", "PIQA", "HellaSwag", "WinoGrande", "ARC-e", "ARC-c", "OBQA", "Average"]
    assert [column.title for column in grid.columns] == ["method", *columns]
    assert labels(grid) == ["dense", "SliceGPT", "FLAP", "SVD-LLM", "evolution", "Ours (C4)", "Ours (Calib)"]
    by_label = dict(zip(labels(grid), grid.rows, strict=True))
    assert by_label["dense"][1].text == "75.00"
    assert by_label["SliceGPT"][1].text == by_label["Ours (Calib)"][1].text == "40.00"
    assert by_label["SliceGPT"][1].detail == "± 1.0; paper –"
    assert "Seeds: 1: Ours (C4) at 20 %; 2: Ours (Calib) at 20 %." in grid.notes
    assert [entry.text for entry in by_label["FLAP"][1:]] == ["–"] * 8
    assert (by_label["Ours (C4)"][8].text, by_label["Ours (C4)"][8].detail) == ("50.00", "paper 61.19")
    assert by_label["Ours (Calib)"][8].detail == "paper 61.89"
    assert (5, 8) in grid.best()
    second = cell(OURS, 0.2, 7, seed=1, zero_shot={"boolq": 0.5}, zero_shot_stderr={"boolq": 0.03})
    several = replace(one, comparison=replace(one.comparison, cells=[*one.comparison.cells[:2], second]))
    ((_, grid),) = grids_of(TABLES[1], [several])
    assert (grid.rows[6][1].text, grid.rows[6][1].detail) == ("45.00", "± 2.0; paper –")  # means over seeds
    ((_, grid),) = grids_of(TABLES[1], [replace(one, other_text="texts/words.txt")])
    assert (labels(grid)[5], grid.rows[5][8].detail) == ("Ours (words)", "paper –")


def test_perplexities_stand_by_sparsity_and_model_and_the_best_of_each_is_marked():
    one = measured("llama-7b", all_cells())
    two = measured("tiny", [])
    ((title, grid),) = grids_of(TABLES[2], [one, two])
    assert title == "Table 2. Perplexity at 0, 20 and 30 % sparsity."
    assert [column.title for column in grid.columns] == ["method", "sparsity", "llama-7b", "tiny"]
    names = ["SliceGPT", "FLAP", "SVD-LLM", "evolution", "Ours", "Ours (Calib)"]
    assert labels(grid) == ["dense", *names, *names]
    assert [row[1] for row in texts(grid)] == ["0 %", *["20 %"] * 6, *["30 %"] * 6]
    assert texts(grid)[0][2:] == [f"{DENSE:.2f}"] * 2
    found = {(row[0].text.split(" †")[0], row[1].text): row[2] for row in grid.rows}
    cells = {(x.method, x.target_sparsity): x for x in all_cells()[: len(TABLES[2].keys(1))]}
    for percent, sparsity in (("20 %", 0.2), ("30 %", 0.3)):
        ours = cells[OURS, sparsity]
        assert found["Ours", percent].text == f"{ours.test_ppl:.2f}"
        assert found["Ours (Calib)", percent].text == f"{ours.calibrated_test_ppl:.2f}"
        assert found["evolution", percent].text == f"{cells[EVOLUTION, sparsity].calibrated_test_ppl:.2f}"
    assert found["Ours (Calib)", "20 %"].detail == "paper 6.64 §"  # 40 windows of the test text, not all of it
    assert found["Ours", "30 %"].detail == "paper 8.65 §"
    assert found["FLAP", "30 %"].detail == "paper –"
    assert all(row[3].text == "–" and not row[3].detail for row in grid.rows[1:])
    marked = {(grid.rows[i][1].text, j) for i, j in grid.best()}
    assert marked == {("20 %", 2), ("30 %", 2)}


def test_the_third_table_shows_the_parts_of_one_search():
    cells = [cell("uniform", 0.2, 30), cell(OURS, 0.2, 26, seed=0), cell(OURS, 0.2, 28, seed=1)]
    ((_, grid),) = grids_of(TABLES[3], [measured("mistral-7b", cells)])
    assert labels(grid) == ["dense", "Calib.", "Search", "Search + Calib."]
    assert [row[2] for row in texts(grid)] == [f"{DENSE:.2f}", "30.00", "270.00", "27.00"]
    details = [row[2].detail for row in grid.rows]
    assert details == ["paper –", "paper 7.22 §", "260.00–280.00; paper 6.89 §", "26.00–28.00; paper 6.48 §"]
    assert "Seeds of every search: 2." in grid.notes


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({}, True),
        ({"test_text": "wikitext2"}, True),
        ({"test_text": None, "text": "wikitext2"}, True),
        ({"test_text": "c4"}, False),
        ({"test_windows": 32}, False),
        ({"test_seq_len": 1024}, False),
    ],
)
def test_the_paper_s_figure_is_marked_where_ours_was_measured_otherwise(changes, comparable):
    protocol = {"test_text": "files/wiki.test.raw", "test_windows": None, "test_seq_len": 2048}
    one = measured("mistral-7b", [cell("uniform", 0.2, 30)])
    told = replace(one.comparison, settings={**one.comparison.settings, **protocol, **changes})
    ((_, grid),) = grids_of(TABLES[3], [replace(one, comparison=told)])
    assert grid.rows[1][2].detail == ("paper 7.22" if comparable else "paper 7.22 §")
    assert any(note.startswith("§ ") for note in grid.notes) != comparable


def test_a_model_that_was_not_calibrated_as_asked_is_not_the_best():
    fell_back = {"calibration": "ridge", "calibration_asked": "sequential"}
    cells = [cell(EVOLUTION, 0.2, 20, seed=0, **fell_back), cell(OURS, 0.2, 26, seed=0)]
    for number, row in ((2, 6), (4, 4)):
        ((_, grid),) = grids_of(TABLES[number], [measured("tiny", cells)])
        best = {i for i, j in grid.best() if j == len(grid.columns) - 1}
        assert best == {row}, [grid.rows[i][0].text for i in best]


def test_a_warm_start_costs_what_it_starts_from_and_what_it_adds():
    warm = {"settings": {"warm": {"method": OURS, "sparsity": 0.2, "share": 0.15}}}
    cells = [
        cell("slicegpt", 0.2, 40, seconds=1800),
        cell("flap-bias", 0.2, 39, seconds=36),
        cell(OURS, 0.2, 26, seconds=36_000, seed=0, candidates=1328),
        cell(WARM, 0.3, 33, seconds=5_400, seed=0, **warm),
    ]
    ((_, grid),) = grids_of(TABLES[4], [measured("llama-7b", cells)])
    names = ["SliceGPT", "FLAP", "evolution"]
    assert labels(grid) == ["dense", *names, "Ours (Calib)", *names, "Ours (Calib), warm-started"]
    assert [column.title.partition(" (")[0] for column in grid.columns][2:] == [
        "search cost", "total cost", "search tokens", "candidates measured", "PPL"
    ]  # fmt: skip
    rows = {(row[0].text.split(" †")[0], row[1].text): row[2:] for row in grid.rows}
    assert [x.text for x in rows["SliceGPT", "20 %"]] == ["–", "0.50", "–", "–", "40.00"]
    assert [x.text for x in rows["FLAP", "20 %"]] == ["–", "0.11", "–", "–", "39.00"]
    assert [x.text for x in rows["Ours (Calib)", "20 %"]] == ["10.00", "10.10", "2 M", "1,328", "26.00"]
    assert [x.detail for x in rows["Ours (Calib)", "20 %"]] == ["paper 6.13", "paper 7.10", "", "", "paper 6.64 §"]
    last = rows["Ours (Calib), warm-started", "30 %"]
    assert [x.text for x in last] == ["11.50", "11.60", "2 M", "–", "33.00"]
    assert [x.detail for x in last] == ["1.50 more; paper 7.03", "1.50 more; paper 8.12", "", "", "paper 8.02 §"]
    second = cell(OURS, 0.2, 27, seconds=3600, seed=1)
    ((_, grid),) = grids_of(TABLES[4], [measured("llama-7b", [*cells, second])])
    assert grid.rows[-1][2].text == "11.50"  # of the search that it did start from, not of the mean
    alone = measured("llama-7b", cells[-1:])
    ((_, grid),) = grids_of(TABLES[4], [alone])
    assert [x.text for x in grid.rows[-1][2:4]] == ["–", "–"]  # what it starts from is not there
    ((_, grid),) = grids_of(TABLES[4], [replace(alone, prepared=None, comparison=None)])
    assert all(x.text == "–" for row in grid.rows for x in row[2:])


@pytest.mark.parametrize("number", TABLES)
def test_what_is_called_calibrated_shows_nothing_where_nothing_was(number):
    """No figure of a model that is only cut stands beside the paper's of one that is calibrated."""
    accuracies = {"zero_shot": {**dict.fromkeys(TASKS, 0.5), "average": 0.5}}
    keys = [*TABLES[number].keys(1), *TABLES[number].keys(1, other_text=True)]
    cells = [replace(cell(*key[:2], 20, seed=key.seed), **accuracies) for key in keys]
    cut = [x if x.kept is None else replace(x, calibrated_test_ppl=None, calibrated_test_interval=None) for x in cells]
    for made, shown in ((cells, True), (cut, False)):
        one = measured("llama-7b", made, other=made)
        calibration = {"calibration": "ridge" if shown else "none"}
        one = replace(one, comparison=replace(one.comparison, settings={**one.comparison.settings, **calibration}))
        ((_, grid),) = grids_of(TABLES[number], [one])
        for row in grid.rows[1:]:
            there = shown or "†" in row[0].text or row[0].text in ("Ours", "Search")
            assert (row[-1].text != "–") == there, row[0]
            if number == 4:
                assert (row[3].text != "–") == there  # in all
                assert (row[2].text != "–") == ("Ours" in row[0].text or "evolution" in row[0].text)
        assert any("--calibration none" in note for note in grid.notes) != shown


def test_the_line_below_a_table_names_the_text_that_was_calibrated_on():
    one = measured("tiny", [])
    settings = {**one.comparison.settings, "text": "a/valid.txt", "calibration": "ridge", "calibration_text": None}
    for changes, says in (
        ({}, "Searched on valid.txt, ranked and calibrated (ridge) on valid.txt, tested on"),
        ({"calibration_text": "c4"}, "Searched on valid.txt, ranked and calibrated (ridge) on c4, tested on"),
    ):
        told = replace(one, comparison=replace(one.comparison, settings=settings | changes))
        ((_, grid),) = grids_of(TABLES[3], [told])
        assert any(note.startswith(says) for note in grid.notes)


def test_the_total_holds_the_calibration_of_the_model_itself():
    alone = cell(OURS, 0.2, 26, seconds=3600, seed=0, calibration="sequential")
    for changes, total in (
        ({"calibration_seconds": 7200}, "3.10"),
        ({}, "–"),  # in sequence it takes long, and how long was not noted
        ({"calibration": "ridge"}, "1.10"),
    ):
        ((_, grid),) = grids_of(TABLES[4], [measured("tiny", [replace(alone, **changes)])])
        assert [x.text for x in grid.rows[4][2:4]] == ["1.00", total]


def test_hours_are_of_the_devices_of_their_cell_and_marked_where_they_are_of_different_ones():
    cpu = {"device": "cpu", "devices": 1, "threads": 2, "hardware": "x86_64"}
    gpus = {"device": "cuda:0", "devices": 2, "threads": 8, "hardware": "NVIDIA H200"}
    warm = {"settings": {"warm": {"method": OURS, "sparsity": 0.2, "share": 0.15}}}

    def shown(first, second, prepared):
        cells = [
            cell("slicegpt", 0.2, 40, machine=gpus),
            cell(OURS, 0.2, 26, seed=0, calibration_seconds=3600, machine=first),
            cell(WARM, 0.3, 33, seed=0, machine=second, **warm),
        ]
        ((_, grid),) = grids_of(TABLES[4], [replace(measured("tiny", cells, prepared=3600), machine=prepared)])
        rows = [grid.rows[i][2:4] for i in (1, 4, 8)]
        return [[x.text for x in row] for row in rows], rows[2][0].detail, grid.notes[0]

    texts, added, note = shown(gpus, {**gpus, "device": "cuda:1", "threads": 4}, gpus)
    assert (texts, added) == ([["–", "2.00"], ["2.00", "6.00"], ["4.00", "6.00"]], "2.00 more")
    assert note.startswith("Device: 2 × cuda (NVIDIA H200). ")
    texts, added, note = shown(cpu, gpus, cpu)
    assert (texts, added) == ([["–", "2.00"], ["1.00", "3.00"], ["3.00 ¶", "4.00 ¶"]], "2.00 more")
    assert "cpu (x86_64), 2 threads: ranking and calibration text, Ours (Calib) at 20 %" in note
    assert "cuda (NVIDIA H200): SliceGPT at 20 %, Ours (Calib), warm-started at 30 %" in note
    assert shown(gpus, gpus, cpu)[0] == [["–", "2.00"], ["2.00", "5.00 ¶"], ["4.00", "5.00 ¶"]]
    # Cells of before do not say what they were measured on: the folder does, if anything.
    texts, _, note = shown(None, None, cpu)
    assert (texts[1], note.startswith("¶")) == (["1.00", "3.00"], True)
    assert shown(None, None, {})[0][1] == ["1.00", "3.00"]


def test_figures_of_the_paper_are_of_places_that_there_are_and_agree_with_each_other():
    assert set(PAPER_MODELS) <= {*HUB_MODELS} & {*SHAPES}
    places = {
        (table.number, line.label, sparsity)
        for table in TABLES.values()
        for sparsity, lines in table.lines.items()
        for line in lines
    }
    assert {(table, label, sparsity) for table, _, label, sparsity, _ in PRINTED} <= places
    for model in ("opt-125m", "opt-1.3b", "opt-2.7b", "llama-2-7b"):
        for third, second in (("Search", "Ours"), ("Search + Calib.", "Ours (Calib)")):
            assert printed(3, model, third, 0.2, "ppl") == printed(2, model, second, 0.2, "ppl")
    assert printed(4, "llama-7b", "Ours (Calib)", 0.2, "ppl") == printed(2, "llama-7b", "Ours (Calib)", 0.2, "ppl")
    assert printed(2, "llama-7b", "SliceGPT", 0.2, "ppl") is None


@pytest.mark.parametrize("number", TABLES)
def test_files_hold_the_same_table_and_say_where_the_paper_s_figures_are_from(number, tmp_path):
    table, models = TABLES[number], [measured("llama-7b", all_cells()), measured("tiny", [])]
    assert write_table(table, models, tmp_path, "python evaluate/tables.py") == f"table-{number}"
    markdown = (tmp_path / f"table-{number}.md").read_text(encoding="utf-8")
    page = Page((tmp_path / f"table-{number}.html").read_text(encoding="utf-8"))
    grids = grids_of(table, models)
    assert len(markdown_tables(markdown)) == len(page.tables) == len(grids) == (1 if table.several else 2)
    for (title, grid), rows, shown in zip(grids, markdown_tables(markdown), page.tables, strict=True):
        assert f"## {title}" in markdown
        assert len(rows) - 2 == len(shown) - 1 == len(grid.rows)
        for row, line in zip(grid.rows, shown[1:], strict=True):
            assert [x.text for x in row] == [cell.split(" paper")[0].split(" ±")[0] for cell in line]
    assert "github.com/YuanTheouy/structure_pruning" in markdown
    alone = grids_of(table, models[1:])
    assert all("None of these models is in the paper" in " ".join(grid.notes) for _, grid in alone)
    assert not any("github.com" in note for _, grid in alone for note in grid.notes)
