"""A limit says how much the mean loss may rise; what is none gets one line."""

from __future__ import annotations

import math

import pytest

from ffprune_env.limits.limit import Limit


@pytest.mark.parametrize(("words", "value"), [("5%", 0.05), ("0.05", 0.05), (" 2.5 %", 0.025), ("150%", 1.5)])
def test_a_loss_is_read_as_a_percentage_or_a_fraction(words, value):
    assert Limit.max_loss(words) == Limit("max_loss", pytest.approx(value))


@pytest.mark.parametrize("words", ["5", "0", "-1%", "nan", "five", "", "%", "inf%", "1.0"])
def test_what_is_no_loss_is_refused_with_what_got(words):
    with pytest.raises(ValueError, match=r"--max-loss takes a percentage above 0, such as 5%.*got") as error:
        Limit.max_loss(words)
    assert repr(words) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ppl", [1.0, 0.5, -3.0, math.nan, math.inf])
def test_what_is_no_perplexity_is_refused(ppl):
    with pytest.raises(ValueError, match="--max-ppl takes a perplexity"):
        Limit.max_ppl(ppl)


@pytest.mark.parametrize("reward", [0.0, 1.0, 1.5, -0.2, math.nan])
def test_what_is_no_reward_is_refused(reward):
    with pytest.raises(ValueError, match="--min-reward takes PPL_dense / PPL"):
        Limit.min_reward(reward)


def test_the_three_say_the_same():
    """Of a dense perplexity of 20: 5 % more is 21, a reward of 20 / 21."""
    nats = [limit.most(20) for limit in (Limit.max_loss("5%"), Limit.max_ppl(21), Limit.min_reward(20 / 21))]
    assert nats == pytest.approx([math.log(1.05)] * 3)
    assert [str(x) for x in (Limit.max_loss("0.05"), Limit.max_ppl(21), Limit.min_reward(0.9))] == [
        "--max-loss 5%",
        "--max-ppl 21",
        "--min-reward 0.9",
    ]


def test_a_perplexity_below_that_of_the_dense_model_is_refused():
    with pytest.raises(ValueError, match=r"--max-ppl 19: the dense model has 20.00 on this text"):
        Limit.max_ppl(19).most(20)
