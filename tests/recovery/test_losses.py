"""The loss of a recovery against the plain formula, its gradients against autograd's, and how much of it exists."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from ffprune_env.lm import loss as lm_loss
from ffprune_env.recovery import student
from ffprune_env.recovery.chunks import Task, linear_losses, native_losses
from ffprune_env.recovery.hidden import hidden_errors
from ffprune_env.recovery.passages import collate, passages_of, scored_rows
from ffprune_env.recovery.soft_targets import TopRows, WholeRows, top_rows
from ffprune_env.recovery.student import batch_losses
from ffprune_env.recovery.teacher import DenseTeacher, usable_head

ROWS, WIDTH, VOCABULARY = 7, 5, 11


@dataclass
class Given:
    log_p: torch.Tensor
    k: int | None

    def part(self, start, stop):
        rows = self.log_p[start:stop]
        return WholeRows(rows) if self.k is None else top_rows(rows, self.k)


@pytest.fixture
def made():
    draw = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    log_p = (2 * random(ROWS, VOCABULARY).detach()).log_softmax(-1)
    labels = torch.randint(VOCABULARY, (ROWS,), generator=draw)
    return random(ROWS, WIDTH), random(VOCABULARY, WIDTH), random(VOCABULARY), log_p, labels


def plain(logits, log_p, labels, share, k):
    """The formulas of docs/recovery.md, written out: KL, whole or over k + 1 outcomes, and cross-entropy."""
    log_q = logits.log_softmax(-1)
    if k is not None:
        chosen = log_p.topk(k, dim=-1).indices
        p, q = log_p.exp(), log_q.exp()
        log_p, log_q = (
            torch.cat([x.gather(1, chosen), (1 - x.gather(1, chosen).sum(1, keepdim=True))], dim=1).log()
            for x in (p, q)
        )
    kl = (log_p.exp() * (log_p - log_q)).sum()
    cross_entropy = F.cross_entropy(logits, labels, reduction="sum")
    return (1 - share) * kl + share * cross_entropy, kl, cross_entropy


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_values_and_gradients_are_those_of_the_plain_formula(made, share, k, at_once):
    hidden, weight, bias, log_p, labels = made
    inputs = (hidden, weight, bias)
    expected = plain(hidden @ weight.T + bias, log_p, labels, share, k)
    wanted = torch.autograd.grad(3 * expected[0], inputs)
    task = Task(labels, Given(log_p, k), share, at_once)
    for found in (
        linear_losses(hidden, weight, bias, task),
        native_losses(hidden, lambda states: states @ weight.T + bias, task),
    ):
        torch.testing.assert_close((found.loss, found.kl, found.cross_entropy), expected)
        torch.testing.assert_close(torch.autograd.grad(3 * found.loss, inputs), wanted)
    with torch.no_grad():
        torch.testing.assert_close(linear_losses(hidden, weight, bias, task).loss, expected[0].detach())


def test_of_a_frozen_head_no_gradient_is_made(made):
    hidden, weight, _, log_p, labels = made
    found = linear_losses(hidden, weight.detach(), None, Task(labels, Given(log_p, None), 0.0, 3))
    expected = plain(hidden @ weight.detach().T, log_p, labels, 0.0, None)[0]
    torch.testing.assert_close(torch.autograd.grad(found.loss, hidden), torch.autograd.grad(expected, hidden))


def test_what_is_missing_of_a_teacher_is_one_more_outcome(made):
    _, _, _, log_p, _ = made
    log_q = log_p.roll(1, dims=0)
    whole = WholeRows(log_p).measured(log_q)[0]
    before = torch.zeros(ROWS)
    for k in range(1, VOCABULARY + 3):
        kl, target = top_rows(log_p, k).measured(log_q)
        assert bool((kl >= before - 1e-9).all())
        assert bool((kl <= whole + 1e-9).all())
        torch.testing.assert_close(target.sum(-1), torch.ones(ROWS, dtype=torch.float64))
        before = kl
    torch.testing.assert_close(before, whole)
    # Where the student has the others in the teacher's proportions nothing is missing.
    torch.testing.assert_close(top_rows(log_p, 2).measured(log_p)[0], torch.zeros(ROWS, dtype=torch.float64))


def test_a_token_that_the_teacher_forbids_costs_nothing():
    log_p = torch.tensor([[0.0, -torch.inf]])
    for soft in (WholeRows(log_p), TopRows(log_p[:, :1], torch.tensor([[0]]), torch.tensor([-torch.inf]))):
        kl, target = soft.measured(torch.tensor([[0.25, 0.75]]).log())
        torch.testing.assert_close(kl, torch.tensor([4.0]).log())
        torch.testing.assert_close(target, torch.tensor([[1.0, 0.0]]))


class Largest(TorchDispatchMode):
    """Notes the most rows that any tensor over the vocabulary has."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if not isinstance(x, torch.Tensor) or tuple(x.shape) == (32, 256):  # the head, turned round
                continue
            if x.shape[-1:] == (256,) and x.is_floating_point():
                self.rows = max(self.rows, x.numel() // 256)
        return out


# Of the last two the logits are more than hidden states times a matrix.
@pytest.mark.parametrize("family", ["llama-gqa", "opt", "gemma2", "granite"])
def test_the_loss_of_a_model_is_that_of_its_own_logits_and_never_whole(family, windows, monkeypatch):
    monkeypatch.setattr(student, "_LOGIT_BYTES", 4 * 256 * 5)  # five rows at a time
    monkeypatch.setattr(lm_loss, "_LOGIT_BYTES", 4 * 256 * 5)
    dense, model = tiny_model(family), tiny_model(family, seed=1)
    batch = collate([{"input_ids": w, "labels": w, "index": i} for i, w in enumerate(windows[:, :12])])
    batch["labels"][0, :6] = -100
    teacher, head = DenseTeacher(dense), usable_head(model, "it")
    assert (head.route == "projection") == (family in ("llama-gqa", "opt"))
    with Largest() as largest:
        found = batch_losses(model, batch, teacher.teach(batch), 0.25)
        found.loss.backward()
    assert largest.rows == 5
    gradient = model.get_decoder().layers[1].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()
    scored = scored_rows(batch["labels"])
    with torch.no_grad():
        log_p = dense(batch["input_ids"]).logits[:, :-1][scored].log_softmax(-1)
    logits = model(batch["input_ids"]).logits[:, :-1][scored]
    expected = plain(logits, log_p, batch["labels"][:, 1:][scored], 0.25, None)
    torch.testing.assert_close((found.loss, found.kl, found.cross_entropy), expected, rtol=1e-5, atol=1e-5)
    expected[0].backward()
    torch.testing.assert_close(
        gradient, model.get_decoder().layers[1].self_attn.q_proj.weight.grad, rtol=1e-4, atol=1e-7
    )


def test_hidden_states_are_compared_token_by_token(windows):
    draw = torch.Generator().manual_seed(0)
    dense = [torch.randn(3, 24, 4, generator=draw) for _ in range(2)]
    scored = torch.ones(3, 23, dtype=torch.bool)
    scored[0, :5] = False
    found = {i: 1.1 * x for i, x in enumerate(dense)}
    torch.testing.assert_close(hidden_errors(found, dense, scored), 0.01 * scored.sum(), rtol=1e-4, atol=0)
    assert len(passages_of(windows)) == 3
