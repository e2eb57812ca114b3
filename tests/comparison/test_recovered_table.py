"""The table of recovered models says what was asked of all of them, of some, or of none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ffprune_env.comparison.recovered import RecoveredCell, recovered_markdown


def cell(method, seed, average):
    asked = None if average is None else {"piqa": average, "average": average}
    return RecoveredCell(method, 0.2, seed, 0, 10.0, 14.0, 12.0, asked, asked, {}, {})


@pytest.mark.parametrize(
    ("averages", "shown"), [((0.5, 0.6), "0.550"), ((None, 0.6), "0.600 (1 of 2)"), ((None, None), "–")]
)
def test_the_table_says_how_many_models_were_asked(averages, shown):
    table = recovered_markdown([cell("ppo", seed, average) for seed, average in enumerate(averages)])
    (line,) = [line for line in table.splitlines() if line.startswith("| `ppo`")]
    assert line.endswith(f"| 1 | {shown} | {shown} | 2 |")


def test_a_model_whose_answers_have_no_average_is_left_out_of_it():
    """A likelihood that is no number leaves a task, and so the average, without an accuracy."""
    broken = replace(cell("ppo", 1, 0.6), zero_shot_after={"arc_easy": 0.3})
    table = recovered_markdown([cell("ppo", 0, 0.5), broken])
    (line,) = [line for line in table.splitlines() if line.startswith("| `ppo`")]
    assert line.endswith("| 1 | 0.550 | 0.500 (1 of 2) | 2 |")


def test_a_model_that_was_not_calibrated_as_asked_is_marked_and_explained():
    table = recovered_markdown([cell("ppo", 0, None), replace(cell("uniform", None, None), fell_back=True)])
    assert "| `uniform` ‡ |" in table
    assert "| `ppo` |" in table
    assert table.splitlines()[-1].startswith("‡ ")
    assert "‡" not in recovered_markdown([cell("ppo", 0, None)])
