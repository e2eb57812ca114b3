"""A lead of `ffn-only` on a few windows is the answer only where it is more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from ffprune_env.search.settled import settled, simple_among, spoken_for

HARD = np.array([3.0, 3.0, 3.0, 3.1])  # one window decides the mean
EASY = np.array([3.01, 3.01, 3.01, 3.01])


@pytest.mark.parametrize(
    ("ffn_only", "answer"),
    [
        (EASY, "the start"),  # it leads by 0.015 nats, with a standard error of 0.025
        (HARD - [0.01, 0.02, 0.03, 0.02], "ffn-only"),
        (np.full(4, 3.0), "the start"),  # by 0.025 with as much
        (HARD[:1] - 0.1, "ffn-only"),  # of one number no error can be told
        (HARD - [0.01, 0.01, 0.01, -0.02], "ffn-only"),  # by 0.0025 with 0.0075, but on most windows
        (np.array([3.001, 3.001, 3.001, 2.9]), "ffn-only"),  # one window of four, and 5 % of perplexity
    ],
)
def test_the_safety_net_has_to_lead_by_more_than_chance(ffn_only, answer):
    losses = {"the start": HARD[: len(ffn_only)], "ffn-only": ffn_only}
    assert settled(["ffn-only", "the start"], losses, {"the start"})[0] == answer


def test_what_was_searched_for_need_not():
    """A search was rewarded for it on other text."""
    losses = {"the start": HARD, "the policy's mean": EASY}
    known = {"the start", "the policy's mean"}
    assert settled(["the policy's mean", "the start"], losses, known)[0] == "the policy's mean"


@pytest.mark.parametrize(
    ("start", "answer"),
    [
        (
            HARD - [0.0, 0.0, 0.0, 0.05],
            "the policy's mean",
        ),  # it leads by 0.0125 nats, with as much
        (HARD - [0.01, 0.01, 0.01, 0.02], "the start"),
    ],
)
def test_a_search_that_starts_from_ffn_only_keeps_it_where_it_leads_by_more_than_chance(start, answer):
    """It is the same candidate under another name, and nothing more speaks for it."""
    kept = {"the start": b"f", "ffn-only": b"f", "the policy's mean": b"m"}
    simple = simple_among(kept)
    assert simple == {"the start", "ffn-only"}
    losses = {"the start": start, "the policy's mean": HARD}
    known = {"the start", "the policy's mean"} - simple
    assert settled(["the start", "the policy's mean"], losses, known, simple)[0] == answer


def test_a_start_from_curves_is_not_simple():
    assert simple_among({"the start": b"s", "ffn-only": b"f", "the policy's mean": b"f"}) == {"ffn-only"}
    assert simple_among({"the start": b"s", "the policy's mean": b"s"}) == set()


def test_nothing_speaks_for_equal_scores_nor_for_a_lucky_sample():
    """Where nothing speaks for the next best either, a lead is a lead."""
    scores = {"the start": np.zeros(3), "the policy's mean": np.arange(3.0), "archived sample 1": np.arange(3.0)}
    assert spoken_for(scores) == {"the policy's mean"}
    assert spoken_for({**scores, "the start": np.arange(3.0)}) == {"the start", "the policy's mean"}
    losses = {"ffn-only": EASY, "the start": HARD, "archived sample 1": HARD}
    for rival in ("the start", "archived sample 1"):
        assert settled(["ffn-only", rival], losses, spoken_for(scores))[0] == "ffn-only"


def test_a_broken_model_is_never_what_chance_saves():
    losses = {"the start": np.array([3.0, np.inf]), "ffn-only": np.array([3.0, 9.0])}
    assert settled(["ffn-only", "the start"], losses, {"the start"})[0] == "ffn-only"
