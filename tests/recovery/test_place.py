"""A recovery trains a model where it is: Trainer knows of the first GPU alone, and the model may be on another."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from conftest import tiny_model

import ffprune_env as ff
from ffprune_env.recovery.distillation_loss import DistillationLoss
from ffprune_env.recovery.passages import collate, passages_of
from ffprune_env.recovery.progress import Progress
from ffprune_env.recovery.teacher import DenseTeacher
from ffprune_env.recovery.trainer import RecoveryTrainer, training_arguments

QUICK = ff.RecoverySettings(windows_per_step=2, held_out=1, looks=1, precision="float32")
TEXT = torch.randint(1, 256, (4, 16), generator=torch.Generator().manual_seed(1))


def trainer_for(model, folder, place):
    """A trainer of a model, which is told that it is somewhere."""
    passages, progress = passages_of(TEXT), Progress(2)
    loss = DistillationLoss(model, DenseTeacher(copy.deepcopy(model)), QUICK)
    arguments = training_arguments(QUICK, progress, Path(folder), 2, place)
    return RecoveryTrainer(model, loss, passages[1:], passages[:1], progress, arguments, lambda *_: None)


def test_inputs_and_counts_go_to_where_the_model_is(tmp_path):
    """As on a machine with two GPUs; ``meta`` stands for the second, from which nothing comes back by accident."""
    for place in (torch.device("cpu"), torch.device("cuda", 1), torch.device("meta")):
        assert training_arguments(QUICK, Progress(2), tmp_path, 2, place).device == place
    trainer = trainer_for(tiny_model("llama").float(), tmp_path, torch.device("meta"))
    batch = collate([trainer.train_dataset[0]])
    assert {x.device.type for x in trainer._prepare_inputs(batch).values()} == {"meta"}
    assert trainer._get_num_items_in_batch([batch], trainer.args.device).device.type == "meta"


def test_trainer_moves_nothing(tmp_path, monkeypatch):
    moved, to = [], torch.nn.Module.to

    def noting(module, *where, **more):
        moved.extend(where)
        return to(module, *where, **more)

    monkeypatch.setattr(torch.nn.Module, "to", noting)
    model = tiny_model("llama").float()
    here = model.device
    trainer = trainer_for(model, tmp_path, here)
    trainer.accelerator.state._shared_state["device"] = torch.device(
        "meta"
    )  # the first GPU, and the model is elsewhere
    try:
        trainer.train()
    finally:
        trainer.accelerator.state._shared_state["device"] = here
    assert {torch.device(where) for where in moved} <= {here}
    assert model.device == here
    assert trainer.state.global_step == 2


def test_the_loss_follows_the_model():
    """Of several processes each moves its own to a device of its own, after the loss was made."""
    model = tiny_model("llama").float()
    loss = DistillationLoss(model, DenseTeacher(tiny_model("llama", 1).float()), QUICK)
    assert loss._device.type == "cpu"
    model.to("meta")
    assert loss._device.type == "meta"
