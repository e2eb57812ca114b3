"""What pruning costs, and shares of it, where perplexities are numbers and where they are not."""

from __future__ import annotations

import math

import pytest

from ffprune_env.lm.excess import excess, share_removed, share_text


def test_a_share_is_of_the_loss_that_pruning_added():
    assert excess(math.e * 20, 20) == pytest.approx(1)
    assert share_removed(20, 40, 20) == 1
    assert share_removed(40, 40, 20) == 0
    assert share_removed(math.sqrt(40 * 20), 40, 20) == pytest.approx(0.5)
    assert share_removed(80, 40, 20) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("ppl", "base", "dense"),
    [(50_000.0, math.inf, 20.0), (math.inf, math.inf, 20.0), (25.0, 20.0, 20.0), (18.0, 19.0, 20.0)],
)
def test_of_nothing_and_of_what_is_infinite_there_is_no_share(ppl, base, dense):
    """A model that is still broken has not won back all of its loss."""
    share = share_removed(ppl, base, dense)
    assert math.isnan(share)
    assert share_text(share) == "–"


def test_a_model_that_broke_has_lost_without_end():
    assert share_removed(math.inf, 40, 20) == -math.inf
    assert excess(math.inf, 20) == math.inf
