"""In which number formats a recovery computes, and in which it leaves the models."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from conftest import tiny_model

import ffprune_env as ff
from ffprune_env.recovery.passages import PassageData, collate, passages_of
from ffprune_env.recovery.ready import formats_kept
from ffprune_env.recovery.teacher import DenseTeacher
from ffprune_env.recovery.trained import widened

QUICK = ff.RecoverySettings(windows_per_step=2, held_out=1, looks=1, learning_rate=1e-3, precision="float32", seed=3)
TEXT = torch.randint(1, 256, (4, 16), generator=torch.Generator().manual_seed(1))


def narrow(family, dtype, seed=0):
    """A model as transformers loads it in a narrow format: weights are narrow, what positions are made of is not."""
    model = tiny_model(family, seed).float()
    for x in model.parameters():
        x.data = x.data.to(dtype)
    return model


def formats(model):
    return {name: x.dtype for name, x in model.named_parameters()}


@pytest.mark.parametrize(
    ("family", "dtype", "lora"),
    [("llama", torch.bfloat16, None), ("llama", torch.bfloat16, 2), ("gemma3", torch.bfloat16, None),
     ("llama", torch.float64, None)],
)  # fmt: skip
def test_buffers_are_after_a_recovery_what_they_were(family, dtype, lora):
    """Frequencies of rotary embeddings are finer than the weights, and a model on disk has them so."""
    model = narrow(family, dtype)
    dense, had = copy.deepcopy(model), formats(model)
    values = {name: x.clone() for name, x in model.named_buffers()}
    assert any(x.dtype == torch.float32 for x in values.values())
    ff.recover(model, dense, TEXT, dataclasses.replace(QUICK, lora=lora))
    after = dict(model.named_buffers())
    assert {name: x.dtype for name, x in after.items()} == {name: x.dtype for name, x in values.items()}
    assert all(torch.equal(after[name], x) for name, x in values.items())
    assert formats(model) == had


def test_a_weight_that_is_finer_than_the_others_stays_so():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=torch.bfloat16), torch.nn.Linear(2, 2))
    before = copy.deepcopy(model)
    with formats_kept(model):
        assert {x.dtype for x in widened(model).parameters()} == {torch.float32}
    assert formats(model) == formats(before)
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_a_recovered_model_in_memory_is_the_one_on_disk(tmp_path):
    """What is measured of it after a recovery is what anybody measures who reads it."""
    dense, model = narrow("llama", torch.bfloat16), narrow("llama", torch.bfloat16, seed=1)
    assert ff.recover(model, dense, TEXT, QUICK).kept
    model.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert torch.equal(read(TEXT).logits, model(TEXT).logits)


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float16), ("opt", torch.bfloat16), ("gemma2", torch.float16)]
)
def test_a_narrow_teacher_teaches_beside_training_in_bfloat16(family, dtype, monkeypatch):
    """On a GPU autocast makes layer norms hand on float32, which a narrow head does not take; so here."""
    layer_norm = torch.nn.functional.layer_norm

    def as_on_a_gpu(x, shape, weight=None, bias=None, eps=1e-5):
        if not torch.is_autocast_enabled("cpu"):
            return layer_norm(x, shape, weight, bias, eps)
        return layer_norm(x.float(), shape, *(None if y is None else y.float() for y in (weight, bias)), eps)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", as_on_a_gpu)
    dense, model = narrow(family, dtype), narrow(family, dtype, seed=1)
    told = ff.recover(model, dense, TEXT, dataclasses.replace(QUICK, precision="bfloat16"))
    assert told.steps == 2
    assert math.isfinite(told.after.kl)


@pytest.mark.parametrize("lora", [None, 2])
def test_float16_is_trained_in_bfloat16_on_a_cpu(lora):
    """Whose layer norms take no bfloat16 where their weights are float16: before and after, and beside adapters."""
    dense, model = narrow("opt", torch.float16), narrow("opt", torch.float16, seed=1)
    told = ff.recover(model, dense, TEXT, dataclasses.replace(QUICK, precision="bfloat16", lora=lora))
    assert told.steps == 2
    assert math.isfinite(told.after.kl)


def test_what_a_teacher_says_does_not_depend_on_the_training_around_it():
    teacher = DenseTeacher(tiny_model("gemma2").float())
    data = PassageData(passages_of(TEXT))
    batch = collate([data[0]])

    def said():
        found = teacher.teach(batch, layers=True)
        return found.rows.part(0, 8).log_p, *found.layers

    alone = said()
    with torch.autocast("cpu", torch.bfloat16):
        beside = said()
    assert all(map(torch.equal, alone, beside))
