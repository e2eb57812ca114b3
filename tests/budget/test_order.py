"""The order of the units: by score, and by a draw among equals that favours nobody."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ffprune_env.budget.order import descending

few_values = st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1.0]), min_size=1, max_size=12).map(np.array)


@given(few_values)
def test_higher_scores_come_first_and_everybody_once(scores):
    order = descending(scores)
    assert sorted(order) == list(range(len(scores)))
    assert (np.diff(scores[order]) <= 0).all()


@given(few_values)
def test_the_same_scores_have_the_same_order(scores):
    np.testing.assert_array_equal(descending(scores), descending(scores.copy()))
    np.testing.assert_array_equal(descending(scores), descending(np.where(scores == 0, 0.0, scores)))


def test_among_equal_scores_nobody_is_first_more_often():
    # Nine units tie at the bottom, the tenth differs from draw to draw, as scores of a policy do.
    rng = np.random.default_rng(0)
    places = np.zeros(9)
    draws = 2000
    for _ in range(draws):
        order = descending(np.append(np.zeros(9), 1 + rng.random()))
        places[order[1]] += 1
    expected = draws / 9
    assert np.abs(places - expected).max() < 5 * np.sqrt(expected)
