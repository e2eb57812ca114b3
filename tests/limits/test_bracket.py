"""The highest σ that meets a limit, against the obvious answer; both ends of what is returned were measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffprune_env.limits.bracket import DECIMALS, highest_meeting

STEP, WIDTH = 0.01, 0.002


def counted(excess):
    asked = {}

    def measure(at):
        assert at not in asked, "measured twice"
        asked[at] = excess(at)
        return asked[at]

    return measure, asked


@given(st.floats(0.02, 0.5), st.floats(0.02, 0.5), st.floats(0.5, 4))
def test_of_rising_losses_it_is_the_crossing(crossing, guess, power):
    measure, asked = counted(lambda at: at**power - crossing**power)
    met, missed = highest_meeting(measure, 0.02, 0.5, guess, STEP, WIDTH)
    if met is None:
        assert (missed, crossing) == (0.02, pytest.approx(0.02, abs=10**-DECIMALS))
    elif missed is None:
        assert (met, crossing) == (0.5, pytest.approx(0.5, abs=10**-DECIMALS))
    else:
        assert met <= crossing <= missed <= met + WIDTH + 1e-9
    assert all(0.02 <= at <= 0.5 and at == round(at, DECIMALS) for at in asked)
    assert len(asked) <= 24


@given(st.lists(st.floats(-1, 1), min_size=25, max_size=25), st.floats(0.02, 0.5))
def test_whatever_the_losses_do_both_ends_were_measured(values, guess):
    measure, asked = counted(lambda at: values[int(at * 49)] or 1.0)
    met, missed = highest_meeting(measure, 0.02, 0.5, guess, STEP, WIDTH)
    assert met is None or asked[met] <= 0
    assert missed is None or asked[missed] > 0
    assert met is not None or missed == 0.02
    assert missed is not None or met == 0.5
    assert None in (met, missed) or 0 < missed - met <= WIDTH + 1e-9


def test_a_loss_that_is_not_finite_is_only_too_much():
    met, missed = highest_meeting(lambda at: math.inf if at > 0.3 else at - 0.29, 0.02, 0.5, 0.5, STEP, WIDTH)
    assert 0.288 <= met <= 0.29 <= missed <= 0.292


def test_the_same_model_is_not_looked_for_twice():
    """Models change at every hundredth only: it ends with neighbours."""
    measure, asked = counted(lambda at: round(at, 2) - 0.2449)

    def same(one, other):
        return round(one, 2) == round(other, 2)

    met, missed = highest_meeting(measure, 0.02, 0.5, 0.1, STEP, WIDTH, same)
    assert (round(met, 2), round(missed, 2)) == (0.24, 0.25)
    assert len(asked) < 12


def test_a_line_is_found_in_few_measurements():
    measure, asked = counted(lambda at: at - 0.2137)
    highest_meeting(measure, 0.02, 0.5, 0.2, STEP, WIDTH)
    assert len(asked) <= 6
