"""The page of a comparison: figures and markup, and nothing from elsewhere."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from made_comparison import (
    Page,
    make_comparison,
    markdown_tables,
)

from ffprune_env.comparison.report.drawing import method_styles
from ffprune_env.comparison.report.figures import mean_curve, perplexity_figure, retention_figure, search_figure
from ffprune_env.comparison.report.page import comparison_page
from ffprune_env.comparison.report.rows import rows_at
from ffprune_env.comparison.report.tables import comparison_markdown


@pytest.fixture(scope="module")
def comparison():
    return make_comparison()


@pytest.fixture(scope="module")
def page(comparison):
    return comparison_page(comparison)


def test_the_page_has_the_tables_of_the_markdown(comparison, page):
    ours = [[[re.sub(r"[*\\()]", "", x) for x in row] for row in t if row[1][:3] != "---"] for t in
            markdown_tables(comparison_markdown(comparison))[1:]]  # fmt: skip
    theirs = [[[re.sub(r"[()]", "", x) for x in row] for row in table] for table in Page(page).tables]
    assert ours == theirs
    assert len(theirs) == 5


def test_the_figure_of_the_searches_says_what_it_was_measured_on(page):
    assert "on the 16 windows of search text of an evaluation" in page
    assert "all search text" not in page


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
