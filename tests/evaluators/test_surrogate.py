"""Invented models: what windows differ by is fixed, shared by near allocations, and nothing on the average."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ffprune_env as ff

DENSE = 15.0
NOISE = 0.5
MANY = 2000


def invented(noise=NOISE, **changes):
    return ff.SurrogateEvaluator.synthetic(n_layers=6, seed=3, noise=noise, dense_ppl=DENSE, **changes)


NOISY = invented()
UNITS = NOISY.units
HALF = np.array([unit.n_groups // 2 for unit in UNITS])
FULL = np.array([unit.n_groups for unit in UNITS])
KEPT = st.tuples(*(st.integers(0, unit.n_groups) for unit in UNITS)).map(np.array)


def off(kept, evaluator=NOISY, n=MANY):
    """By how much each window for finalists is off, in nats."""
    return evaluator.final_losses(kept, n) - math.log(DENSE) - evaluator.damage(kept)


@given(KEPT, KEPT, st.integers(1, 5))
def test_the_same_question_is_answered_alike_whatever_was_asked_before(kept, other, n):
    asked, again = invented(), invented()
    again.compare(other, n + 1)
    again.final_losses(other, 2)
    assert asked.compare(kept, n) == again.compare(kept, n) == asked.compare(kept, n)
    assert asked.measure(kept, n) == asked.compare(kept, n)[0]
    assert (asked.final_losses(kept, n) == again.final_losses(kept, n)).all()


@given(KEPT, st.permutations(range(6)))
def test_windows_are_measured_one_by_one_in_any_order(kept, order):
    each = [NOISY.compare(kept, (i,))[1] for i in range(6)]
    assert NOISY.compare(kept, tuple(order)) == NOISY.compare(kept, tuple(range(6)))
    assert NOISY.compare(kept, tuple(order))[1] == pytest.approx(np.mean(each))


def test_the_first_windows_are_among_more_of_them():
    """What two windows say is half of what the first does: the two are correlated by 1 / √2."""
    texts = [ff.SurrogateEvaluator(UNITS, NOISY.curves, noise=NOISE, seed=seed) for seed in range(1000)]
    one, two = ([text.compare(HALF, n)[1] for text in texts] for n in (1, 2))
    assert np.corrcoef(one, two)[0, 1] == pytest.approx(1 / math.sqrt(2), abs=0.06)


def test_the_first_windows_those_of_the_pool_and_those_for_finalists_are_different_ones():
    """No two of them are off alike, and none as units are sensitive, which has the same seed."""
    one, n = np.eye(len(UNITS), dtype=int), 5
    found = []
    for unit in range(len(UNITS)):  # pruned alone it shows by how much its own curve is off
        kept = FULL - one[unit] * (FULL - HALF)
        truth = NOISY.damage(kept)
        first = np.diff([k * NOISY.compare(kept, k)[1] for k in range(1, n + 1)], prepend=0)
        pool = np.array([NOISY.compare(kept, (i,))[1] for i in range(n)])
        final = NOISY.final_losses(kept, n) - math.log(DENSE)
        found.append([*first / truth - 1, *pool / truth - 1, *final / truth - 1, math.log(truth)])
    alike = np.abs(np.corrcoef(np.array(found), rowvar=False) - np.eye(3 * n + 1))
    assert alike.max() < 0.95
    assert (invented().final_losses(HALF, 3) == NOISY.final_losses(HALF, 3)).all()
    others = ff.SurrogateEvaluator(UNITS, NOISY.curves, noise=NOISE, seed=4)
    assert (others.final_losses(HALF, 3) != NOISY.final_losses(HALF, 3)).all()


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_windows_deviate_by_what_was_asked_for_where_half_is_kept(noise):
    evaluator = invented(noise)
    assert off(HALF, evaluator).std() == pytest.approx(noise, rel=0.05)
    assert off(FULL, evaluator).std() == 0
    on_four = [evaluator.compare(HALF, tuple(range(i, i + 4)))[1] for i in range(0, MANY, 4)]
    assert np.std(on_four) == pytest.approx(noise / 2, rel=0.1)


@given(KEPT)
def test_the_mean_of_many_windows_is_the_truth(kept):
    wrong = off(kept)
    assert abs(wrong.mean()) < 5 * wrong.std() / math.sqrt(MANY) + 1e-12
    assert invented(0.0).damage(kept) == NOISY.damage(kept)


def test_near_allocations_share_most_of_what_a_window_says_wrongly_and_far_ones_less():
    """A search that compares on the same windows can tell neighbours that it could not tell on different ones."""
    near, far = HALF.copy(), FULL.copy()
    near[0] += 1
    far[: len(UNITS) // 2] = HALF[: len(UNITS) // 2] // 2
    middle, beside, away = off(HALF), off(near), off(far)
    assert np.corrcoef(middle, beside)[0, 1] > 0.98
    assert np.corrcoef(middle, away)[0, 1] < 0.9
    assert (beside - middle).std() < middle.std() / 5
    aside = HALF.copy(), HALF.copy()  # of different units nothing is shared
    aside[0][1::2], aside[1][::2] = FULL[1::2], FULL[::2]
    assert abs(np.corrcoef(*map(off, aside))[0, 1]) < 0.1


@given(KEPT, st.integers(1, 9))
def test_without_noise_every_window_says_the_truth(kept, n):
    plain = invented(0.0)
    damage = sum(float(curve[k]) for curve, k in zip(plain.curves, kept, strict=True))
    assert plain.compare(kept, n) == plain.compare(kept, tuple(range(n))) == (DENSE * math.exp(damage), damage)
    assert plain.damage(kept) == damage
    assert plain.final_losses(kept, n).tolist() == [math.log(DENSE) + damage] * n


def test_noise_needs_a_damage_to_be_a_share_of():
    flat = [np.zeros_like(curve) for curve in NOISY.curves]
    assert ff.SurrogateEvaluator(UNITS, flat).damage(HALF) == 0
    with pytest.raises(ValueError, match="noise is a share of the damage where half is kept, which is 0: give none"):
        ff.SurrogateEvaluator(UNITS, flat, noise=0.1)
    with pytest.raises(ValueError, match="noise must be finite and at least 0, got -1"):
        ff.SurrogateEvaluator(UNITS, flat, noise=-1)
