"""``transformers.Trainer`` with the loss of a recovery, its schedule, and its looks at the held-out part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ffprune_env.lm.phases import Advance
from ffprune_env.recovery.checkpoints import keep_seconds
from ffprune_env.recovery.distillation_loss import DistillationLoss
from ffprune_env.recovery.passages import Passage, PassageData, collate, scored_rows
from ffprune_env.recovery.progress import NO_END, Progress, looks_made, rate_at
from ffprune_env.recovery.settings import RecoverySettings

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState

# Looks and checkpoints are due by progress, never by a number of steps.
_NEVER = 10**9


class NotFiniteError(RuntimeError):
    """The loss of a step is no number."""


class RecoveryArguments(TrainingArguments):
    """What Trainer is told, and where the model is: Trainer would take it to the first GPU.

    Attributes:
        place: where a single process trains; None lets Trainer say, as several processes need it.
    """

    place: torch.device | None = None  # no annotation of a field: this class is no dataclass

    @property
    def device(self) -> torch.device:
        """Where inputs go, and what is counted."""
        return super().device if self.place is None else self.place


class RecoveryTrainer(Trainer):
    """Trains a pruned model towards a teacher.

    Loss, evaluation, schedule, looks and end are of this project; optimizer, accumulation, order of the data,
    checkpoints, the best of them, early stopping, resuming and what several processes need are Trainer's. The loss of a
    step is the mean over all of its tokens, however it is split into batches.

    Args:
        student: the pruned model, with its adapters if it has any.
        distillation: makes losses of batches.
        train: passages to train on.
        held_out: passages to choose the best state by.
        progress: how far it is.
        arguments: of Trainer, as :func:`training_arguments` makes them.
        advance: called after every step.
        callbacks: more of them.
    """

    control: Any
    lr_scheduler: Any

    def __init__(
        self,
        student: Any,
        distillation: DistillationLoss,
        train: Sequence[Passage],
        held_out: Sequence[Passage],
        progress: Progress,
        arguments: RecoveryArguments,
        advance: Advance,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        settings = distillation.settings
        more: list[TrainerCallback] = [*callbacks, _Looks(progress, settings.looks, advance)]
        if settings.patience:
            more.append(EarlyStoppingCallback(settings.patience))
        data = PassageData(train), PassageData(held_out, len(train))
        super().__init__(
            student, arguments, data_collator=collate, train_dataset=data[0], eval_dataset=data[1], callbacks=more
        )
        self.remove_callback(PrinterCallback)
        if arguments.world_size == 1:
            self.accelerator.device_placement = False  # it would move the model to the first GPU, wherever it is
        self.distillation, self.held_out, self.progress = distillation, held_out, progress
        # The loss is divided by the tokens of the whole step.
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = self.loss_is_scaled_for_ga = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss of a batch, as a part of the mean over the tokens of a step."""
        losses = self.distillation.losses(inputs, model)
        tokens = num_items_in_batch if num_items_in_batch is not None else scored_rows(inputs["labels"]).sum()
        if isinstance(tokens, torch.Tensor):
            tokens = tokens.to(losses.loss.device)
        processes: int = self.accelerator.num_processes
        loss = losses.loss / tokens * processes  # over which gradients are averaged
        return loss.to(
            self.args.device
        )  # where Trainer adds losses up: of a model on several GPUs the head is elsewhere

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a batch; NotFiniteError, before any weight is changed, if the loss is no number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss)):
            raise NotFiniteError(f"the loss became {float(loss)} at step {self.state.global_step + 1}")
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean losses of the held-out part."""
        metrics = self.distillation.held_out(self.held_out, len(self.train_dataset), self.model).metrics()
        if not math.isfinite(metrics["eval_loss"]):
            raise NotFiniteError(f"the held-out loss became {metrics['eval_loss']} at step {self.state.global_step}")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate goes by progress, which may be one of time."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: rate_at(self.progress.at(step)) if step < NO_END else 0.0
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler


def training_arguments(
    settings: RecoverySettings, progress: Progress, folder: Path, batch: int, place: torch.device
) -> RecoveryArguments:
    """What Trainer is told.

    Args:
        settings: of the recovery.
        progress: how many steps there are, if that is known.
        folder: of checkpoints.
        batch: windows per forward pass; it divides the windows per step.
        place: where the model is.
    """
    on_cpu = place.type == "cpu"
    arguments = RecoveryArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=settings.windows_per_step // batch,
        learning_rate=settings.rate,
        weight_decay=0.0,
        max_steps=progress.steps or NO_END,
        eval_strategy="steps",
        eval_steps=_NEVER,
        save_strategy="steps",
        save_steps=_NEVER,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        include_num_input_tokens_seen="all",
        activation_checkpointing=settings.save_memory,
        use_cpu=on_cpu,
        seed=settings.seed,
    )
    if arguments.world_size == 1:
        arguments.place = place
        if not on_cpu:
            arguments._n_gpu = 1  # several are for several processes, never for copies in threads
    return arguments


class _Looks(TrainerCallback):
    """Says when to look and when to end, and writes down beside every checkpoint how long it took to get there."""

    def __init__(self, progress: Progress, looks: int, advance: Advance) -> None:
        self.progress, self.looks, self._advance = progress, looks, advance
        self._made, self._note = 0, ""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Counts the looks that were made before."""
        self._made = looks_made(self.progress.at(state.global_step), self.looks)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a look, and a checkpoint with it, where one is due."""
        done = self.progress.at(state.global_step)
        due = looks_made(done, self.looks)
        if due > self._made or done >= 1:
            control.should_evaluate = control.should_save = True
            self._made = due
        control.should_training_stop = control.should_training_stop or done >= 1
        clock = "" if self.progress.steps else f"{done:.0%} of the time  "
        self._advance(1, clock + self._note)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Shows what was found."""
        self._note = f"held-out loss {metrics['eval_loss']:.4f}, KL {metrics['eval_kl']:.4f}"

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keeps the time."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        keep_seconds(folder, self.progress.elapsed)
