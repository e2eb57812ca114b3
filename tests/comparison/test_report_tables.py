"""Tables and findings of a comparison say what was measured."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from made_comparison import (
    DENSE,
    METHODS,
    REBUILDS,
    make_cell,
    make_comparison,
    markdown_tables,
    small,
)
from rich.console import Console

from ffprune_env.comparison.report.ablation import ablation_markdown
from ffprune_env.comparison.report.findings import findings
from ffprune_env.comparison.report.page import comparison_page
from ffprune_env.comparison.report.rewarded import rewarded_grid
from ffprune_env.comparison.report.rows import rows_at
from ffprune_env.comparison.report.tables import comparison_markdown, comparison_table, overview_table


@pytest.fixture(scope="module")
def comparison():
    return make_comparison()


def test_tables_hold_what_was_measured(comparison):
    text = comparison_markdown(comparison)
    _, first, scores, *_ = markdown_tables(text)
    assert first[2][0] == "dense"
    assert first[2][4] == "20.16"
    finals = {row[0].removesuffix(" †"): row for row in first[3:]}
    assert set(finals) == set(METHODS)
    for method, row in finals.items():
        cells = [cell for cell in comparison.cells if cell.method == method and cell.target_sparsity == 0.2]
        values = [cell.calibrated_test_ppl for cell in cells]
        final = [cell.test_ppl if cell.calibrated_test_ppl is None else cell.calibrated_test_ppl for cell in cells]
        shown = "–" if values[0] is None else f"{np.mean(values):.2f}"
        if len(values) > 1:
            shown += f" ({min(values):.2f}–{max(values):.2f})"
        assert row[1] == ("–" if cells[0].seed is None else "3")
        assert row[2] == ("–" if method in REBUILDS else "20.00%")
        assert row[5].replace("*", "") == shown
        uniform = next(c for c in comparison.cells if c.method == "uniform").calibrated_test_ppl
        assert float(row[6].strip("*%")) == pytest.approx(100 * (np.mean(final) / uniform - 1), abs=0.051)
        excess = math.log(np.mean(final) / DENSE) / math.log(uniform / DENSE)
        assert float(row[7].strip("*%")) == pytest.approx(100 * (1 - excess), abs=0.051)
    order = [
        np.mean([cell.calibrated_test_ppl or cell.test_ppl for cell in row.cells]) for row in rows_at(comparison, 0.2)
    ]
    assert order == sorted(order)
    assert [row[0].removesuffix(" †") for row in first[3:]] == [row.method for row in rows_at(comparison, 0.2)]
    assert scores[0] == ["method", r"arc\_easy", "piqa", "winogrande", "average"]
    assert scores[2] == ["dense", "56.0%", "55.0%", "56.0%", "55.7%"]


def test_the_best_of_every_column_is_bold_and_the_dense_model_is_no_candidate(comparison):
    _, first, scores, *_ = markdown_tables(comparison_markdown(comparison))
    bold = [(row[0], first[0][j]) for row in first[2:] for j, x in enumerate(row) if x.startswith("**")]
    assert sorted(bold) == sorted(
        [
            ("slicegpt †", "test PPL"),
            ("evopress", "test PPL, calibrated"),
            ("evopress", "change against uniform, calibrated"),
            ("evopress", "share of e(uniform, calibrated) removed"),
        ]
    )
    for j in range(1, 5):
        values = {row[0]: float(row[j].strip("*%")) for row in scores[3:]}
        best = [row[0] for row in scores[3:] if row[j].startswith("**")]
        assert best
        assert all(values[name] == max(values.values()) for name in best)


SEQUENTIAL = {"calibration": "sequential", "calibration_asked": "sequential"}


def with_fallbacks(comparison, *fell_back):
    """The comparison with all cells calibrated in sequence, but for those of these methods and seeds."""
    cells = []
    for cell in comparison.cells:
        kinds = SEQUENTIAL if cell.method not in REBUILDS else {}
        kinds = {**kinds, "calibration": "ridge"} if (cell.method, cell.seed) in fell_back else kinds
        cells.append(replace(cell, **kinds))
    return replace(comparison, cells=cells)


def test_svd_llm_without_its_update_is_marked(comparison):
    cells = [replace(cell, lacks_update=7 * (cell.method == "svd-llm")) for cell in comparison.cells]
    text = comparison_markdown(replace(comparison, cells=cells))
    tables = markdown_tables(text)[1:]
    assert [[row[0] for row in table if "§" in row[0]] for table in tables] == [["svd-llm † §"]] * 5
    assert text.count("- § 7 of its matrices go without the update of their factors") == 5
    assert "§" not in comparison_markdown(comparison)


def test_what_was_not_calibrated_as_asked_is_marked_and_not_compared(comparison):
    """One seed of the best search: its row stays, but it is best of nothing, and no percentage is made from it."""
    mixed = with_fallbacks(comparison, ("evopress", 1))
    text = comparison_markdown(mixed)
    tables = markdown_tables(text)[1:]
    marked = [[row[0] for row in table if "‡" in row[0]] for table in tables]
    assert marked == [["evopress ‡"]] * 5
    assert text.count("- ‡ With one seed at least calibrated by Eqs. 6-7 alone, not in sequence") == 5
    for table in (tables[0], tables[2]):
        (row,) = (row for row in table if row[0] == "evopress ‡")
        assert "**" not in row[5]
        assert row[6:8] == ["–", "–"]
        assert all(x.strip("*").endswith("%") for other in table[2:] if other is not row for x in other[6:8])
    (over_all,) = (row for row in tables[4] if row[0] == "evopress ‡")
    assert over_all[-1] == "–"
    assert not any("**" in x for x in over_all)
    for paragraph in findings(mixed):
        assert "`evolution` is best" in paragraph
        assert paragraph.endswith("not with every seed: `evopress`.")
    page = comparison_page(mixed)
    assert "see ‡ in the tables" in page
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table(mixed, 0.2))
    assert "evopress ‡" in console.export_text()
    whole = comparison_markdown(with_fallbacks(comparison))
    assert whole == comparison_markdown(comparison)
    assert "‡" not in whole


def test_nothing_is_compared_with_a_uniform_that_was_calibrated_otherwise(comparison):
    table = markdown_tables(comparison_markdown(with_fallbacks(comparison, ("uniform", None))))[1]
    assert all(row[6:8] == ["–", "–"] for row in table[2:])


def test_where_all_are_calibrated_in_one_other_way_they_are_compared_and_marked(comparison):
    every = [(cell.method, cell.seed) for cell in comparison.cells if cell.method not in REBUILDS]
    text = comparison_markdown(with_fallbacks(comparison, *every))
    assert findings(with_fallbacks(comparison, *every)) == findings(comparison)
    assert re.sub(" ‡|\n- ‡.*", "", text) == comparison_markdown(comparison)
    assert text.count("‡") > len(METHODS)


def test_the_ablation_marks_what_was_not_calibrated_as_asked(comparison):
    mixed = with_fallbacks(make_comparison((0.2,), methods=("uniform", "ppo")), ("uniform", None))
    (table,) = markdown_tables(ablation_markdown(mixed))
    assert table[2][2].endswith(" ‡")
    assert not table[2][1].endswith("‡")
    assert not table[2][4].endswith("‡")
    assert "‡ With one seed at least calibrated by Eqs. 6-7 alone" in ablation_markdown(mixed)
    assert "‡" not in ablation_markdown(with_fallbacks(make_comparison((0.2,), methods=("uniform", "ppo"))))


def test_methods_that_rebuild_the_weights_are_marked(comparison):
    text = comparison_markdown(comparison)
    marked = {row[0] for table in markdown_tables(text) for row in table if row[0].endswith("†")}
    assert marked == {"svd-llm †", "slicegpt †"}
    assert text.count("- † Rebuilds the weights") == 5  # below every table
    assert "†" not in comparison_markdown(make_comparison(methods=("uniform", "ppo")))


def test_half_of_the_excess_is_half():
    middle = math.sqrt(DENSE * 30)  # half way between in ln PPL
    table = markdown_tables(comparison_markdown(small({"uniform": [30.0], "flap": [middle]})))[1]
    assert [row[7].strip("*") for row in table[2:]] == ["100.0%", "50.0%", "0.0%"]


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        (
            {"uniform": [30], "ffn-only": [28], "ppo": [26, 27], "evopress": [27, 27]},
            "`ppo` is best, with a test PPL of 26.50 (calibrated); dense has 20.16, `uniform` 30.00. "
            "The best search, `ppo` (26.50), beats the best heuristic, `ffn-only` (28.00), by 5.4%.",
        ),
        (
            {"flap": [28], "ppo": [26, 29]},
            "The best search, `ppo` (27.50), beats the best heuristic, `flap` (28.00), by 1.8%, "
            "but not with every seed: its worst has 29.00.",
        ),
        (
            {"uniform": [30], "flap": [28], "ppo": [29, 29], "random": [31, 31]},
            "No search beats the best heuristic: "
            "`flap` (28.00) is better than the best search, `ppo` (29.00), by 3.4%.",
        ),
        (
            {"uniform": [30], "ffn-only": [29], "flap": [28], "evopress": [27, 27], "ppo": [29.5, 29.5]},
            "Without any search `flap` (28.00) and `ffn-only` (29.00) beat `ppo` (29.50). "
            "Of the searches, `evopress` (27.00) does better than `ppo` (29.50).",
        ),
        (
            {"uniform": [30], "flap": [28], "evopress": [29, 29], "ppo": [29.5, 29.5]},
            "Without any search `flap` (28.00) beats `ppo` (29.50). Of the searches, "
            "`evopress` (29.00) does better than `ppo` (29.50).",
        ),
        ({"flap": [28], "ppo": [28, 28]}, "search, `ppo` (28.00), and the best heuristic, `flap` (28.00), are equal."),
        ({"uniform": [math.inf], "ppo": [28, 28]}, "beats the best heuristic, `uniform` (inf)."),
        ({"uniform": [30], "ppo": [28, math.inf]}, "`uniform` (30.00) is better than the best search, `ppo` (inf)."),
        ({"uniform": [30], "ppo": [math.nan]}, "`uniform` (30.00) is better than the best search, `ppo` (nan)."),
        ({"ppo": [28, 30]}, "`ppo` has a test PPL of 29.00 (calibrated); dense has 20.16."),
    ],
)  # fmt: skip
def test_findings_say_what_the_numbers_say(finals, expected):
    (text,) = findings(small(finals))
    assert text.startswith("At σ = 0.2 ")
    assert text.endswith(expected)


def test_few_test_windows_have_no_interval_and_the_report_says_so(comparison):
    text = comparison_markdown(comparison)
    assert "95% intervals of that test PPL, by Student's t over the losses of test windows (wider where" in text
    assert "windows are alike; fewer than 8 are taken as independent): `dense` 19.60 to" in text
    assert "fewer than 8 are taken as independent" in comparison_page(comparison)
    assert "bootstrap" not in text
    cells = [replace(cell, test_interval=None, calibrated_test_interval=None) for cell in comparison.cells]
    text = comparison_markdown(replace(comparison, cells=cells, dense_interval=None))
    assert "No intervals: they need 4 test windows, and finite losses." in text
    assert "None" not in text
    (row,) = [row for row in rows_at(comparison, 0.2) if row.method == "ppo"]
    assert row.final_interval is not None
    unknown = replace(row, cells=(*row.cells, replace(row.cells[0], calibrated_test_interval=None)))
    assert unknown.final_interval is None  # not that of the model without calibration


def test_what_was_read_is_told_from_what_was_charged(comparison):
    """Of `fisher` 4,096 tokens are read and 12,288 charged; cells of before say nothing of the former."""
    cells = [
        replace(x, tokens_seen=4096, tokens=12288) if x.method == "flap" else replace(x, tokens_seen=None)
        for x in comparison.cells
    ]
    header, _, *rows = markdown_tables(comparison_markdown(replace(comparison, cells=cells)))[1]
    read, charged = header.index("search tokens read"), header.index("search tokens charged")
    named = {row[0].strip("`"): row for row in rows}
    assert (named["flap"][read], named["flap"][charged]) == ("4.1 k", "12.3 k")
    assert (named["ppo"][read], named["ppo"][charged]) == ("–", "4.19 M")


@pytest.mark.parametrize(("limit", "says"), [(200, "The first 200 questions of"), (None, "All questions of")])
def test_accuracies_say_how_many_questions_they_are_of(comparison, limit, says):
    asked = replace(comparison, settings={**comparison.settings, "zero_shot_limit": limit})
    for text in (comparison_markdown(asked), comparison_page(asked)):
        assert f"{says} every task were asked." in text


def test_a_method_that_only_looks_is_a_heuristic_and_one_that_rebuilds_is_neither():
    comparison = small({"uniform": [30], "fisher": [25], "ppo": [26, 26]})
    cells = [replace(x, evaluations=6.0, trace=[]) if x.method == "fisher" else x for x in comparison.cells]
    cells.append(replace(make_cell("svd-llm", 0.2, None, 2, zero_shot=False), test_ppl=24.0))
    (text,) = findings(replace(comparison, cells=cells))
    assert "`svd-llm` is best, with a test PPL of 24.00 (it rebuilds the weights)" in text
    assert "No search beats the best heuristic: `fisher` (25.00)" in text


def test_the_terminal_shows_whole_numbers_on_eighty_columns(comparison):
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(comparison, 0.2))
    text = console.file.getvalue()
    for row in rows_at(comparison, 0.2):
        assert row.method in text
        assert f" {row.plain.mean:.2f} " in text
        assert f" {row.final.low:.2f}–{row.final.high:.2f} " in text or row.seeds is None
    assert "…" not in text


def test_a_sparsity_that_was_not_measured_is_an_error(comparison):
    with pytest.raises(ValueError, match=r"nothing was measured at sparsity 0\.25; measured were 0\.2, 0\.3"):
        comparison_table(comparison, 0.25)


def test_one_table_goes_over_all_sparsities(comparison):
    table = markdown_tables(comparison_markdown(comparison))[-1]
    assert table[0] == ["method", "σ = 0.2", "σ = 0.3", "mean share of e(uniform) removed"]
    assert table[2] == ["dense", "20.16", "20.16", "–"]
    shown = {}
    for name, *ppls, share in table[3:]:
        rows = [next(x for x in rows_at(comparison, s) if x.method == name.removesuffix(" †")) for s in (0.2, 0.3)]
        assert [x.strip("*").split(" (")[0].strip("*") for x in ppls] == [f"{row.final.mean:.2f}" for row in rows]
        uniform = [next(x for x in rows_at(comparison, s) if x.method == "uniform") for s in (0.2, 0.3)]
        excess = [
            math.log(row.final.mean / DENSE) / math.log(x.final.mean / DENSE)
            for row, x in zip(rows, uniform, strict=True)
        ]
        shown[name] = float(share.strip("*%"))
        assert shown[name] == pytest.approx(100 * (1 - np.mean(excess)), abs=0.051)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert shown["uniform"] == 0
    assert [row[0] for row in table[3:] if row[-1].startswith("**")] == ["evopress"]
    console = Console(width=80, file=io.StringIO())
    console.print(overview_table(comparison))
    assert all(f"{share:.1f}%" in console.file.getvalue() for share in shown.values())


def test_a_single_sparsity_needs_no_table_over_all():
    alone = make_comparison((0.2,), methods=("uniform", "ppo"))
    assert overview_table(alone) is None
    assert "All σ" not in comparison_markdown(alone)


def test_what_is_missing_at_one_sparsity_has_no_mean_share(comparison):
    """Neither has anything where `uniform` is missing; all of them stay in the table."""
    cells = [cell for cell in comparison.cells if (cell.method, cell.target_sparsity) != ("flap", 0.3)]
    table = markdown_tables(comparison_markdown(replace(comparison, cells=cells)))[-1]
    assert table[-1][0] == "flap"
    assert table[-1][2:] == ["–", "–"]
    assert all(row[-1].strip("*").endswith("%") for row in table[3:-1])
    cells = [cell for cell in comparison.cells if (cell.method, cell.target_sparsity) != ("uniform", 0.3)]
    table = markdown_tables(comparison_markdown(replace(comparison, cells=cells)))[-1]
    assert {row[-1] for row in table[2:]} == {"–"}
    assert len(table) == 3 + len(METHODS)


def test_one_search_for_several_sparsities_is_said_to_be_one(comparison):
    cells = [
        replace(cell, settings={"targets": [0.2, 0.3]}) if cell.method == "ppo" else cell for cell in comparison.cells
    ]
    text = comparison_markdown(replace(comparison, cells=cells))
    assert text.count("- `ppo`: one search for all σ of the comparison") == 3
    assert "one search for all σ" not in comparison_markdown(comparison)


def test_the_held_out_reward_of_a_comparison_is_that_of_its_losses():
    cells = [
        replace(make_cell("ppo", 0.2, seed, 2, zero_shot=False), held_out={"loss": loss, "margin": -loss})
        for seed, loss in enumerate((0.5, 0.7))
    ]
    cells.append(replace(make_cell("uniform", 0.2, None, 2, zero_shot=False), held_out={"loss": 0.4, "margin": -0.4}))
    comparison = replace(small({"ppo": [20.0]}), cells=cells, dense_held_out={"loss": 0.3, "margin": -0.3})
    grid = rewarded_grid(comparison, 0.2)
    assert [row[0].text for row in grid.rows] == ["dense", "uniform", "ppo"]
    assert grid.rows[0][2].text == "1.000"
    assert grid.rows[2][2].value == pytest.approx((math.exp(-0.2) + math.exp(-0.4)) / 2)
    assert grid.rows[2][2].detail == f"{math.exp(-0.4):.3f}–{math.exp(-0.2):.3f}"
    assert grid.rows[2][3].text == "-0.600"
    assert rewarded_grid(replace(comparison, dense_held_out=None), 0.2) is None
