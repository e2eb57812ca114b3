"""A ledger has what every part of a search cost, whenever it is looked at."""

from __future__ import annotations

import pytest

from ffprune_env.evaluators.ledger import PARTS, Ledger, in_sum
from ffprune_env.lm.cost import Cost, count_forward


def test_the_sum_is_of_all_parts():
    one = Cost(2, 1, 20, 10, 1800, 3600)
    assert in_sum({"start": one, "search": one}) == one + one
    assert in_sum({}) == Cost()


def test_a_failure_leaves_no_tally_open(windows):
    ledger = Ledger()
    with pytest.raises(TypeError), ledger.part("start"):
        count_forward(windows) + 1
    count_forward(windows)
    assert ledger.parts["start"].forward_passes == 3


def test_a_part_can_be_looked_at_while_it_is_made_and_made_in_pieces(windows):
    ledger = Ledger()
    with ledger.part("search", devices=2):
        count_forward(windows)
        assert ledger.parts["search"].forward_passes == 3
    with ledger.part("ranking"):
        pass
    with ledger.part("search", devices=2):
        count_forward(windows)
    assert ledger.parts["search"].forward_passes == 6
    assert ledger.parts["search"].device_seconds == pytest.approx(2 * ledger.parts["search"].seconds)
    assert list(ledger.parts) == [name for name in PARTS if name in ("ranking", "search")]
