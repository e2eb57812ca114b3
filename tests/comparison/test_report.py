"""The report of a comparison: what its tables say, what its sentences conclude, what its page needs."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from ffprune_env.comparison.cells import Cell, Comparison
from ffprune_env.comparison.report.ablation import ablation_markdown
from ffprune_env.comparison.report.drawing import method_styles
from ffprune_env.comparison.report.figures import mean_curve, perplexity_figure, retention_figure, search_figure
from ffprune_env.comparison.report.page import comparison_page
from ffprune_env.comparison.report.rows import findings, rows_at
from ffprune_env.comparison.report.tables import comparison_markdown, comparison_table, overview_table

# e(method) / e(uniform) with calibration, and how much a seed moves it.
METHODS = {
    "uniform": (1.0, 0.0), "ffn-only": (0.83, 0.0), "flap": (0.78, 0.0), "random": (0.80, 0.02),
    "evolution": (0.70, 0.02), "evopress": (0.66, 0.01), "cma-es": (0.72, 0.03), "ppo": (0.74, 0.04),
    "svd-llm": (1.35, 0.0), "slicegpt": (1.12, 0.0),
}  # fmt: skip
WITHOUT_SEARCH = ("uniform", "ffn-only", "flap", "svd-llm", "slicegpt")
REBUILDS = ("svd-llm", "slicegpt")
DENSE = 20.16


def make_cell(method, sparsity, seed, n_layers, zero_shot):
    """A cell as a run on smollm2-135m would give it."""
    rng = np.random.default_rng([round(1000 * sparsity), seed or 0, list(METHODS).index(method)])
    share, noise = METHODS[method]
    rebuilds, searches = method in REBUILDS, method not in WITHOUT_SEARCH
    excess = (9 * sparsity**2 + 0.3 * sparsity) * (share + noise * rng.normal())
    final, plain = DENSE * math.exp(excess), DENSE * math.exp(excess * (1.9 + 2 * sparsity))
    removed = np.full((2, n_layers), sparsity)
    if searches or method == "flap":
        bump = np.sin(np.arange(n_layers) / n_layers * np.pi)
        removed = sparsity * (0.6 + 0.7 * bump) + 0.3 * sparsity * rng.normal(size=(2, n_layers))
    rates = np.clip(1 - removed, 0.2, 1)
    if method == "ffn-only":
        rates[0] = 1
    kept = np.stack([np.maximum(1, np.rint(9 * rates[0])), np.rint(1536 * rates[1])], axis=1).astype(int).ravel()
    search = final * 0.94
    tokens = np.unique(np.geomspace(2**13, 2**22, 60).astype(int)) if searches else []
    decay = [math.exp(-4 * i / 60) - math.exp(-4) for i in range(1, 61)]
    trace = [(int(at), search * (1 + 0.9 * x)) for at, x in zip(tokens, decay, strict=searches)]
    values = {
        "method": method, "target_sparsity": sparsity, "seed": seed, "kept": None if rebuilds else kept.tolist(),
        "sparsity": None if rebuilds else sparsity + 1e-5, "total_sparsity": 0.717 * sparsity,
        "params": round(134_515_008 * (1 - 0.717 * sparsity)), "search_ppl": None if rebuilds else search,
        "test_ppl": final if rebuilds else plain, "test_interval": (0.97 * plain, 1.03 * plain),
        "calibrated_test_ppl": None if rebuilds else final,
        "calibrated_test_interval": None if rebuilds else (0.97 * final, 1.03 * final),
        "evaluations": 512.0 if searches else 0.0, "tokens": 2**22 if searches else 0,
        "seconds": 834.2 + 100 * rng.normal() if searches else 0.4, "trace": trace, "zero_shot": None,
    }  # fmt: skip
    if zero_shot and not seed:
        tasks = ("arc_easy", "piqa", "winogrande")
        accuracies = {task: 0.3 + 0.25 * math.exp(-excess) + 0.01 * rng.normal() for task in tasks}
        values["zero_shot"] = accuracies | {"average": float(np.mean(list(accuracies.values())))}
    return Cell(**values)


def make_comparison(sparsities=(0.2, 0.3), seeds=3, methods=tuple(METHODS), n_layers=30, zero_shot=True):
    """Realistic numbers for every method at every sparsity; methods that draw nothing have one cell."""
    cells = [
        make_cell(method, sparsity, seed, n_layers, zero_shot)
        for sparsity in sparsities
        for method in methods
        for seed in ([None] if METHODS[method][1] == 0 else range(seeds))
    ]
    kinds = (("attention", 9), ("ffn", 1536))
    return Comparison(
        settings={
            "model": "smollm2-135m", "text": "wiki.valid.tokens", "test_text": "wiki.test.raw", "seq_len": 512,
            "search_windows": 16, "evaluations": 512, "calibration": "ridge", "ridge": 0.01, "test_windows": 40,
            "test_seq_len": 2048, "command": "python evaluate/compare_methods.py --model smollm2-135m --seeds 0 1 2",
        },
        units=[
            {"name": f"{kind}.{layer}", "kind": kind, "layer": layer, "n_groups": n}
            for layer in range(n_layers) for kind, n in kinds
        ],
        n_params=134_515_008, dense_test_ppl=DENSE, dense_interval=(19.6, 20.7),
        dense_zero_shot={"arc_easy": 0.56, "piqa": 0.55, "winogrande": 0.56, "average": 0.5567} if zero_shot else None,
        cells=cells,
    )  # fmt: skip


@pytest.fixture(scope="module")
def comparison():
    return make_comparison()


@pytest.fixture(scope="module")
def page(comparison):
    return comparison_page(comparison)


def small(finals, sparsity=0.2):
    """A comparison with these calibrated test perplexities by method, one per seed; it is never drawn."""
    comparison = make_comparison((sparsity,), methods=(), n_layers=2, zero_shot=False)
    cells = []
    for method, values in finals.items():
        like = method if method in METHODS else "ppo"
        for seed, value in enumerate(values):
            cell = make_cell(like, sparsity, seed if len(values) > 1 else None, 2, zero_shot=False)
            cells.append(replace(cell, method=method, calibrated_test_ppl=value))
    return replace(comparison, cells=cells)


def markdown_tables(text):
    """Every table as a list of rows of texts."""
    tables, last = [], ""
    for line in text.splitlines():
        if line.startswith("|"):
            tables += [[]] if not last.startswith("|") else []
            tables[-1].append([x.strip() for x in re.split(r"(?<!\\)\|", line)[1:-1]])
        last = line
    return tables


class Page(HTMLParser):
    """What a browser would make of a page: its tags, ids and references, and whether they are closed in order."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.references, self.tables, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            self.ids += [value] if name == "id" else []
            self.references += [value] if name in ("href", "xlink:href", "src", "data", "action") else []
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
            assert not name.startswith("on")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style" and "svg" not in self._open:
            assert "@import" not in data
            assert "url(" not in data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += f" {data}" if self._open[-1] == "small" else data


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


def test_the_page_has_the_tables_of_the_markdown(comparison, page):
    ours = [[[re.sub(r"[*\\()]", "", x) for x in row] for row in t if row[1][:3] != "---"] for t in
            markdown_tables(comparison_markdown(comparison))[1:]]  # fmt: skip
    theirs = [[[re.sub(r"[()]", "", x) for x in row] for row in table] for table in Page(page).tables]
    assert ours == theirs
    assert len(theirs) == 5


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


def test_the_figure_of_the_searches_says_what_it_was_measured_on(page):
    assert "on the 16 windows of search text of an evaluation" in page
    assert "all search text" not in page


def test_a_method_that_only_looks_is_a_heuristic_and_one_that_rebuilds_is_neither():
    comparison = small({"uniform": [30], "fisher": [25], "ppo": [26, 26]})
    cells = [replace(x, evaluations=6.0, trace=[]) if x.method == "fisher" else x for x in comparison.cells]
    cells.append(replace(make_cell("svd-llm", 0.2, None, 2, zero_shot=False), test_ppl=24.0))
    (text,) = findings(replace(comparison, cells=cells))
    assert "`svd-llm` is best, with a test PPL of 24.00 (it rebuilds the weights)" in text
    assert "No search beats the best heuristic: `fisher` (25.00)" in text


def infinite(comparison):
    """The same, with everything infinite that can be for some methods."""

    def spoil(cell):
        if cell.method == "uniform":
            nothing = {"calibrated_test_ppl": math.inf, "calibrated_test_interval": (math.inf, math.inf)}
            return replace(cell, **nothing, search_ppl=math.inf)
        if cell.method == "ppo" and cell.seed == 1:
            return replace(cell, test_ppl=math.inf, trace=[(at, math.inf) for at, _ in cell.trace])
        if cell.method == "evopress":
            return replace(cell, trace=[(at, math.inf if at < 1e6 else ppl) for at, ppl in cell.trace])
        return replace(cell, test_ppl=math.nan) if cell.method == "svd-llm" else cell

    return replace(comparison, cells=[spoil(cell) for cell in comparison.cells])


@pytest.mark.parametrize("sparsities", [(0.2,), (0.2, 0.3)])
def test_infinite_perplexities_are_shown_and_drawn(sparsities):
    comparison = infinite(make_comparison(sparsities, n_layers=4))
    table = markdown_tables(comparison_markdown(comparison))[1]
    shown = {row[0]: row for row in table}
    assert shown["uniform"][5] == "inf"
    assert shown["ppo"][4].startswith("inf (")
    assert shown["ppo"][4].endswith("–inf)")
    assert shown["svd-llm †"][4] == "nan"
    assert {row[6] for row in table[2:]} == {"nan"}  # nothing can be compared with an infinite uniform
    figure = perplexity_figure(comparison)
    for axes in figure.axes:
        names = [text.get_text() for text in axes.texts]
        assert "inf" in names
        assert "nan" in names
    assert "inf" in [text.get_text() for text in search_figure(comparison).axes[0].texts]
    assert Page(comparison_page(comparison)).tables[0][1][0] == "dense"


def test_seeds_that_found_the_same_are_drawn():
    """The mean of three equal numbers may be a last digit below them."""
    same = 24.541234567890116
    comparison = make_comparison((0.2,), methods=("ppo", "uniform"), n_layers=4)
    cells = [replace(cell, test_ppl=same, calibrated_test_ppl=same) for cell in comparison.cells]
    for factor in range(1, 40):
        scaled = [replace(x, test_ppl=x.test_ppl * factor / 7, calibrated_test_ppl=same * factor / 7) for x in cells]
        perplexity_figure(replace(comparison, cells=scaled))


@pytest.mark.parametrize(
    "comparison",
    [
        make_comparison((0.3,), seeds=1, n_layers=4, zero_shot=False),
        make_comparison(methods=("ppo",), n_layers=4),
        make_comparison((0.3,), methods=("svd-llm",), n_layers=4),
        replace(make_comparison(n_layers=4), settings={}, dense_zero_shot=None),
    ],
    ids=["one seed, one sparsity", "one method", "nothing but rebuilt weights", "no settings"],
)
def test_whatever_is_missing_the_report_is_written(comparison):
    expected = {cell.method for cell in comparison.cells} | {"dense"}
    tables = Page(comparison_page(comparison)).tables
    assert {row[0].removesuffix(" †") for row in tables[0][1:]} == expected
    assert {row[0].removesuffix(" †") for row in markdown_tables(comparison_markdown(comparison))[1][2:]} == expected


def test_without_traces_groups_and_calibration_their_figures_are_left_out():
    comparison = make_comparison((0.2,), methods=("uniform", "ppo"), n_layers=4, zero_shot=False)
    bare = [
        replace(cell, trace=[], calibrated_test_ppl=None, calibrated_test_interval=None) for cell in comparison.cells
    ]
    comparison = replace(comparison, cells=bare)
    assert search_figure(comparison) is None
    assert len(perplexity_figure(comparison).axes) == 1
    assert "change against uniform |" in comparison_markdown(comparison)
    assert retention_figure(make_comparison((0.2,), methods=("svd-llm",)), 0.2) is None


def test_the_page_needs_nothing_else(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "img"} & set(parsed.tags)
    assert parsed.references
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in parsed.references)
    addresses = set(re.findall(r"https?://[^\s\"'<]*", page))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, which nothing fetches


def test_ids_are_unique_and_everything_referred_to_is_there(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {x[1:] for x in parsed.references if x.startswith("#")} <= set(parsed.ids)
    assert parsed.tags.count("svg") == 4


def test_the_page_is_small_and_the_same_every_time(comparison, page):
    assert comparison_page(comparison) == page
    assert len(page.encode()) < 500_000


def test_nothing_from_outside_becomes_markup():
    evil = '<script>alert(1)</script>"$\\frac$ `|`'
    comparison = make_comparison((0.2,), methods=("uniform", "ppo"), n_layers=2)
    cells = [
        replace(cell, method=evil, zero_shot={evil: 0.5, "average": 0.5}) if cell.method == "ppo" else cell
        for cell in comparison.cells
    ]
    settings = {"model": evil, evil: [evil], "command": ["python", evil]}
    comparison = replace(comparison, cells=cells, settings=settings)
    text = comparison_page(comparison)
    assert "script" not in Page(text).tags
    assert evil in [row[0] for row in Page(text).tables[0]]
    tables = markdown_tables(comparison_markdown(comparison))
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    assert "<script>" not in "".join(x for table in tables for row in table for x in row).replace(r"\<script\>", "")


def test_many_methods_can_be_told_apart_and_look_the_same_everywhere():
    comparison = make_comparison((0.2, 0.3), n_layers=2, seeds=2)
    extra = [replace(cell, method=f"more-{i}") for i in range(20) for cell in comparison.cells if cell.method == "ppo"]
    comparison = replace(comparison, cells=[*comparison.cells, *extra])
    styles = method_styles(comparison)
    assert len({(style.color, style.marker) for style in styles.values()}) == len(styles) == 30
    for figure in (perplexity_figure(comparison), search_figure(comparison)):
        (legend,) = figure.legends
        looks = {
            text.get_text(): (line.get_color(), line.get_marker())
            for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
        }
        looks.pop("dense", None)
        assert looks.items() <= {name: (style.color, style.marker) for name, style in styles.items()}.items()
        drawn = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
        assert set(looks.values()) <= drawn


def test_heat_maps_show_the_fraction_kept(comparison):
    figure = retention_figure(comparison, 0.3)
    rows = [row for row in rows_at(comparison, 0.3) if not row.rebuilds]
    for axes, first, n_groups in zip(figure.axes[:2], (0, 1), (9, 1536), strict=True):
        expected = [np.array(row.cells[0].kept[first::2]) / n_groups for row in rows]
        np.testing.assert_allclose(axes.images[0].get_array(), expected)
        assert axes.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [row.method for row in rows]


def test_curves_of_seeds_are_averaged_as_steps():
    rng = np.random.default_rng(0)
    traces = [[(int(at), ppl) for at, ppl in zip(np.cumsum(rng.integers(1, 9, 30)), rng.random(30), strict=True)]
              for _ in range(3)]  # fmt: skip
    tokens, curve = mean_curve(traces)
    assert tokens[0] == max(trace[0][0] for trace in traces)
    assert tokens[-1] == max(trace[-1][0] for trace in traces)
    for at, values in zip(tokens, curve.T, strict=True):
        held = [next(ppl for there, ppl in reversed(trace) if there <= at) for trace in traces]
        np.testing.assert_allclose(values, [np.mean(held), min(held), max(held)])
    long, _ = mean_curve([[(i, 1.0) for i in range(5000)]])
    assert len(long) <= 200
    assert (long[0], long[-1]) == (0, 4999)


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
