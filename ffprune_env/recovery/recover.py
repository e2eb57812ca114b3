"""Recovery: a pruned model is trained for a few minutes towards the predictions of the dense one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from ffprune_env.lm.context import context_length
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.head import look_again
from ffprune_env.lm.loss import check_tokens
from ffprune_env.recovery.hidden import require_same_layers
from ffprune_env.recovery.passages import Passage, hold_out, passages_of
from ffprune_env.recovery.progress import Progress, steps_for
from ffprune_env.recovery.session import Recovery, Session
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.stored_teacher import FOLDER, store_teacher
from ffprune_env.recovery.teacher import DenseTeacher, Teacher, usable_head
from ffprune_env.recovery.trained import require_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recover(
    pruned: PreTrainedModel,
    dense: PreTrainedModel | Teacher,
    windows: torch.Tensor | Sequence[Passage],
    settings: RecoverySettings | None = None,
    *,
    held_out: torch.Tensor | Sequence[Passage] | None = None,
    folder: str | Path | None = None,
    tensorboard: str | Path | None = None,
) -> Recovery:
    """Trains a pruned model to predict what the dense one predicts.

    The loss is KL(dense ‖ pruned) over the whole vocabulary, in the mean over tokens, or what the settings mix with it
    (docs/recovery.md). Weights that are trained are float32 meanwhile, and so is the optimizer: steps are smaller than
    what bfloat16 can tell apart. Products are bfloat16 where the hardware multiplies it fast. In the end the model is
    in the number format that it came in, with the state of the lowest held-out loss; if none is lower than before, or
    a loss is no number, it is the model from before. Where memory runs out the batch is halved and the steps stay the
    same. The generators of Python, NumPy and torch are seeded, as by every training with transformers.

    Args:
        pruned: the model to train, in place.
        dense: the dense model, on any device; or a teacher, such as
            :func:`~ffprune_env.recovery.stored_teacher.store_teacher` makes.
        windows: int64 [n, seq_len], or passages, such as :func:`ffprune_env.load_chat` gives.
        settings: what is trained, towards what, on how much text; None: the defaults.
        held_out: text to choose the best state by, which is not trained on; None takes a few of the windows for that.
        folder: of checkpoints: what was interrupted goes on from there, and what has ended is there and not trained
            again. Remove it when the model is written. None: a temporary one.
        tensorboard: folder of events; None writes none.

    Returns:
        What became of it.

    Raises:
        ValueError: the models have other vocabularies, or no hidden states that give their logits; the text is too
            short or too long for the model; or the folder holds a recovery of something else.
        RuntimeError: memory runs out with a single window.
    """
    settings = settings or RecoverySettings()
    passages = _as_passages(windows)
    train, kept_out = hold_out(passages, settings.held_out) if held_out is None else (passages, _as_passages(held_out))
    progress = progress_of(settings, train)
    _require_fitting(pruned, [*train, *kept_out])
    if settings.lora is not None:
        require_adapters()
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        work = Path(place)
        teacher = _teacher_of(pruned, dense, [*train, *kept_out], settings, work)
        events = None if tensorboard is None else Path(tensorboard)
        return Session(pruned, teacher, train, kept_out, settings, progress, work, events, folder is not None).run()


def progress_of(settings: RecoverySettings, train: Sequence[Passage]) -> Progress:
    """How long a recovery is to be; it begins now.

    Args:
        settings: tokens and minutes, of which either may end it.
        train: what is trained on; once, where neither is given.
    """
    there = sum(len(passage.tokens) for passage in train)
    steps = None
    if settings.tokens is not None or settings.minutes is None:
        steps = steps_for(settings.tokens or there, there, len(train), settings.windows_per_step)
    return Progress(steps, None if settings.minutes is None else 60 * settings.minutes)


def _as_passages(windows: torch.Tensor | Sequence[Passage]) -> list[Passage]:
    return passages_of(windows) if isinstance(windows, torch.Tensor) else list(windows)


def _require_fitting(model: PreTrainedModel, passages: Sequence[Passage]) -> None:
    """Raises ValueError for text that the model cannot read, or that nothing is to be predicted of."""
    require_resident(model, "a recovery")
    longest, most = max(len(passage.tokens) for passage in passages), context_length(model)
    if longest > most:
        raise ValueError(f"windows have {longest} tokens, the model takes at most {most}: cut them shorter")
    if not all(passage.scored for passage in passages):
        raise ValueError("a passage has no token to predict: leave it out")
    check_tokens(model, torch.cat([passage.tokens for passage in passages]))


def _teacher_of(
    pruned: PreTrainedModel,
    dense: PreTrainedModel | Teacher,
    passages: Sequence[Passage],
    settings: RecoverySettings,
    folder: Path,
) -> Teacher:
    """Who teaches; ValueError for a model that cannot be taught by it."""
    look_again(pruned)
    head = usable_head(pruned, "the pruned model")
    given = not isinstance(dense, torch.nn.Module)
    teacher = cast("Teacher", dense) if given else DenseTeacher(cast("PreTrainedModel", dense))
    if teacher.vocabulary != head.vocabulary:
        raise ValueError(
            f"the dense model predicts {teacher.vocabulary} tokens, the pruned one {head.vocabulary}: give the model "
            f"that it was pruned from"
        )
    if given:
        return teacher
    model = cast("PreTrainedModel", dense)
    if settings.hidden:
        require_same_layers(pruned, model)
    if settings.teacher_topk is None:
        return teacher
    return store_teacher(model, passages, settings.teacher_topk, folder / FOLDER)
