"""A recovery trains how text begins, beside the text itself."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model

from ffprune_env.recovery.distillation_loss import DistillationLoss
from ffprune_env.recovery.passages import Passage, PassageData, begin_alike, collate, openings_of_batch, passages_of
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.teacher import DenseTeacher


def batch_of(*passages):
    data = PassageData(passages)
    return collate([data[i] for i in range(len(passages))])


def test_openings_are_every_24th_pair_whose_second_token_counts():
    tokens = torch.arange(60)
    labels = tokens.clone()
    labels[:10] = -100
    pairs = openings_of_batch(batch_of(Passage(tokens, labels)))["input_ids"].tolist()
    assert pairs == [[9, 10], [33, 34], [57, 58]]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_loss_is_that_of_the_text_and_of_every_opening_alone(share):
    dense, pruned = tiny_model("llama", 0), tiny_model("llama", 1)
    windows = torch.randint(3, 200, (2, 50), generator=torch.Generator().manual_seed(0))
    settings = RecoverySettings(cross_entropy=share, precision="float32")
    without, with_openings = (
        DistillationLoss(pruned, DenseTeacher(dense), settings, openings) for openings in (False, True)
    )
    batch = batch_of(*passages_of(windows))
    beside = 0.0
    for pair in openings_of_batch(batch)["input_ids"]:
        log_p, log_q = (m(pair[None, :1]).logits[0, 0].detach().log_softmax(-1) for m in (dense, pruned))
        beside += float((1 - share) * (log_p.exp() * (log_p - log_q)).sum() - share * log_q[pair[1]])
    losses = [float(made.losses(batch).loss) for made in (without, with_openings)]
    assert losses[1] - losses[0] == pytest.approx(beside, rel=1e-3)
    assert beside > 0
    one = batch_of(passages_of(windows)[0])
    assert float(with_openings.losses(one, look=True).loss) == pytest.approx(float(without.losses(one, look=True).loss))


def test_text_that_always_begins_alike_needs_none():
    windows = torch.tensor([[5, 6, 7], [5, 8, 9]])
    assert begin_alike(passages_of(windows))
    assert not begin_alike(passages_of(windows.flip(1)))
