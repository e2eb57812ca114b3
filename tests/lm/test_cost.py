"""What goes through a model is counted exactly, wherever it is run: a witness in its last layer counts the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from witness import Witness

import ffprune_env as ff
from ffprune_env.lm.cost import Cost, count, count_forward, counting
from ffprune_env.lm.devices import devices_held
from ffprune_env.lm.divergence import compare_with_dense, final_hidden_states
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.dense_pass import DensePass
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.sequential import SequentialCalibration

KEPT = [2, 12, 3, 20, 1, 9]


@pytest.fixture
def model():
    return tiny_model("llama")


def prepared(model, windows):
    prunable = ff.PrunableModel(model)
    stats = ff.collect_statistics(prunable, windows)
    prunable.rank(ff.wanda_scores(prunable, stats))
    return prunable, ff.RidgeCalibration(prunable, stats)


def test_costs_add_up():
    one = Cost(2, 1, 20, 10, 1800, 3600)
    assert one + one - one == one
    assert (one + one).device_hours == 2


def test_a_tally_counts_what_is_told_while_it_is_open_and_its_own_time(windows):
    count_forward(windows)
    with counting(devices=4) as outer:
        count_forward(windows)
        with counting() as inner:
            count(Cost(1, 1, 8, 8, seconds=99, device_seconds=99))  # of another process: its time is not ours
    assert inner.cost.forward_tokens == 8
    assert (outer.cost.forward_passes, outer.cost.forward_tokens) == (4, 3 * 24 + 8)
    assert outer.cost.device_seconds == 4 * outer.cost.seconds
    assert 0 < inner.cost.seconds < outer.cost.seconds < 1
    count_forward(windows)
    assert outer.cost.forward_passes == 4


@pytest.mark.parametrize("batch_size", [1, 2])
def test_measurements_are_counted(model, windows, batch_size):
    with Witness(model, 24) as witness, counting() as tally:
        ff.perplexity(model, windows, batch_size)  # once more on one window: are its logits the model's own?
        assert tally.cost.forward_tokens == (3 + 2) * 24
        states = final_hidden_states(model, windows, batch_size)
        compare_with_dense(model, windows, states, batch_size)
    assert tally.cost.forward_tokens == witness.forward == (3 + 2 + 3 + 3) * 24
    assert tally.cost.forward_passes == 11
    assert tally.cost.backward_passes == witness.backward == 0


def test_statistics_gradients_and_curves_are_counted(model, windows):
    with Witness(model, 24) as witness, counting() as tally:
        prunable, calibration = prepared(model, windows)
        assert tally.cost.forward_passes == 3
        collect_gradients(prunable, windows)
        damage_curves(prunable, windows[:2], calibration, np.array(KEPT))
    assert (tally.cost.forward_tokens, tally.cost.backward_tokens) == (witness.forward, witness.backward)
    assert (tally.cost.forward_passes, tally.cost.backward_passes) == (3 + 3 + 2, 3 + 2)


def test_a_calibration_in_sequence_is_a_pass_of_the_dense_and_one_of_the_pruned_model(model, windows):
    _, calibration = prepared(model, windows)
    with Witness(model, 24) as witness, counting() as tally:
        SequentialCalibration(calibration, KEPT, windows, batch_size=2)
    assert tally.cost.forward_tokens == witness.forward == 2 * windows.numel()


@pytest.mark.parametrize(("layers", "passes"), [(0, 4), (1, 2 + 1 + 2 / 3), (2, 2 + 1 + 1 / 3), (3, 3)])
def test_of_a_dense_pass_that_is_shared_what_is_remembered_is_not_counted_again(model, windows, layers, passes):
    prunable, calibration = prepared(model, windows)
    state = windows.numel() * model.config.hidden_size * 8
    dense = DensePass(prunable, windows, room=2 * layers * state)
    with counting() as tally:
        for _ in range(2):
            SequentialCalibration(calibration, KEPT, dense)
    assert dense.remembered == layers
    assert tally.cost.forward_passes == pytest.approx(3 * passes)
    assert tally.cost.forward_tokens == pytest.approx(windows.numel() * passes)


def test_a_calibration_that_breaks_off_counts_as_far_as_it_came(model, windows):
    layers = DensePass(prepared(model, windows)[0], windows, room=0).layers()
    with counting() as tally:
        assert next(layers)
        assert next(layers)
        layers.close()
    assert tally.cost.forward_passes == pytest.approx(3 * 2 / 3)


def test_a_model_whose_logits_are_its_own_code_s_is_counted(windows):
    model = tiny_model("gemma2")
    with Witness(model, 24) as witness, counting() as tally:
        ff.perplexity(model, windows)
    assert tally.cost.forward_tokens == witness.forward


def test_devices_are_those_that_hold_the_model(model):
    assert devices_held(model) == 1
    assert devices_held(torch.nn.Linear(2, 2, device="meta")) == 1
