"""One recovery, from the first look at the held-out text to the last."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.lm.batches import is_out_of_memory, release_memory
from ffprune_env.lm.identity import identity_of_model
from ffprune_env.lm.phases import phase
from ffprune_env.lm.quiet import quiet_transformers
from ffprune_env.lm.replacing import replacing
from ffprune_env.recovery.checkpoints import last_checkpoint
from ffprune_env.recovery.distillation_loss import DistillationLoss, HeldOut
from ffprune_env.recovery.ended import Ended, forget_ended, keep_ended, read_ended, read_values
from ffprune_env.recovery.passages import Passage, begin_alike, digest_of
from ffprune_env.recovery.progress import Progress
from ffprune_env.recovery.ready import put_back, ready
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_BEGUN, _CHECKPOINTS = "begun.json", "checkpoints"


@dataclass(frozen=True)
class Recovery:
    """What became of a recovery.

    Attributes:
        tokens: that went through the model in training, every time they did.
        steps: of the optimizer.
        seconds: that it took, in all processes together.
        before: losses on the held-out part, of the model as it was given.
        after: of the model as it is now.
        kept: whether the model is another one now; if not, it is the one from before, to the bit.
        stopped: why it ended, in words.
        trained: parameters that were trained.
        train_windows: windows, or conversations, that were trained on.
        held_out_windows: those that were held out.
    """

    tokens: int
    steps: int
    seconds: float
    before: HeldOut
    after: HeldOut
    kept: bool
    stopped: str
    trained: int
    train_windows: int
    held_out_windows: int


class Session:
    """A recovery, which goes on where an interrupted one of the same folder was, and does not train what has ended.

    Args:
        model: the pruned model, trained in place.
        teacher: who says what is to be predicted.
        train: passages to train on.
        held_out: passages to choose the best state by.
        settings: of the recovery.
        progress: how long it is to be.
        folder: of checkpoints.
        tensorboard: folder of events; None writes none.
        keeps: whether the folder outlives the process, so that what was trained is to be found there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: Teacher,
        train: Sequence[Passage],
        held_out: Sequence[Passage],
        settings: RecoverySettings,
        progress: Progress,
        folder: Path,
        tensorboard: Path | None,
        keeps: bool,
    ) -> None:
        self.model, self.teacher, self.settings = model, teacher, settings
        self.train, self.held_out, self.folder, self.tensorboard = train, held_out, folder, tensorboard
        self.checkpoints = folder / _CHECKPOINTS
        self.distillation = DistillationLoss(model, teacher, settings, openings=not begin_alike(train))
        self.progress, self.keeps = progress, keeps

    def run(self) -> Recovery:
        """Looks, trains, looks again; a model that is no better is put back."""
        before = self._begin()
        better = False
        with ready(self.model, self.settings) as (student, start):
            n_trained = sum(x.numel() for x in start.values())
            try:
                ended = read_ended(self.folder) if self.keeps else None
                if ended is None:
                    ended = self._train_to_the_end(student, start, before)
                elif ended.better:
                    logger.info("%s holds what was trained before", self.folder)
                    put_back(student, read_values(self.folder))
                better = ended.better
            finally:
                if not better:
                    put_back(student, start)
            if self.settings.lora is not None:
                (student.merge_and_unload if better else student.unload)()
        if not better:
            logger.warning("%s: the model from before is kept", ended.stopped)
        return Recovery(
            tokens=ended.tokens,
            steps=ended.steps,
            seconds=ended.seconds,
            before=before,
            after=self.distillation.held_out(self.held_out, len(self.train)) if better else before,
            kept=better,
            stopped=ended.stopped,
            trained=n_trained,
            train_windows=len(self.train),
            held_out_windows=len(self.held_out),
        )

    def _begin(self) -> HeldOut:
        """The losses of before; what is there already must have been begun with the same."""
        asked = {name: value for name, value in asdict(self.settings).items() if name != "minutes"}
        facts = {"settings": asked, "text": digest_of([*self.train, *self.held_out])}
        now: dict[str, Any] = {**facts, "model": identity_of_model(self.model)}
        file = self.folder / _BEGUN
        begun, ended = _read(file), read_ended(self.folder)
        if begun is not None and (ended is not None or last_checkpoint(self.checkpoints) is not None):
            how = "was interrupted" if ended is None else "has ended"
            changed = [name for name, value in now.items() if begun.get(name) != value]
            if ended is not None and ended.minutes != self.settings.minutes:
                changed.append("number of minutes")
            if changed:
                raise ValueError(
                    f"{self.folder} holds a recovery that {how} and began with another {changed[0]}: go on with the "
                    f"same, or remove the folder"
                )
            return HeldOut(**begun["before"])
        before = self.distillation.held_out(self.held_out, len(self.train))
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        forget_ended(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as scratch:
            scratch.write_text(json.dumps({**now, "before": asdict(before)}), encoding="utf-8")
        return before

    def _train_to_the_end(self, student: Any, start: dict[str, torch.Tensor], before: HeldOut) -> Ended:
        """Trains; what comes of it is kept if nobody has it yet, and checkpoints are needed no more."""
        better = False
        try:
            state, why = self._train(student, start)
            # Anything is better than a loss that is no number.
            better = state.best_metric is not None and not state.best_metric >= before.loss
            if not better:
                why = f"{why}; no held-out loss was below {before.loss:.4g}, the one from before"
        except _Failure as failure:
            why, state = str(failure), failure.state
        ended = Ended(
            steps=int(state.global_step),
            tokens=int(state.num_input_tokens_seen),
            seconds=self.progress.elapsed,
            minutes=self.settings.minutes,
            better=better,
            stopped=why,
        )
        if self.keeps:
            keep_ended(self.folder, ended, {name: x for name, x in student.named_parameters() if name in start})
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        return ended

    def _train(self, student: Any, start: dict[str, torch.Tensor]) -> tuple[Any, str]:
        """Trains with as large a batch as fits; the state that Trainer ends in, and why it ended."""
        from ffprune_env.recovery.trainer import NotFiniteError

        trainer: Any = None
        before = last_checkpoint(self.checkpoints)
        if before is not None:
            self.progress.spent = before[1]
            logger.info("going on from %s", before[0])
        place = self.model.get_input_embeddings().weight.device
        batch = first_batch(place.type == "cpu", self.settings.windows_per_step)
        while True:
            try:
                with _quiet(), self._phase() as advance:
                    trainer = self._trainer(student, batch, place, advance)
                    found = last_checkpoint(self.checkpoints)
                    trainer.train(resume_from_checkpoint=None if found is None else str(found[0]))
                return trainer.state, self._why(trainer.state)
            except NotFiniteError as error:
                raise _Failure(str(error), trainer.state) from error
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if batch == 1:
                    raise RuntimeError(
                        "memory runs out with a single window: give shorter windows, adapters (--lora), less to keep "
                        "(--save-memory), or a stored teacher (--teacher-topk)"
                    ) from error
            # Out of the handler, so that nothing holds on to what the failed pass had made.
            smaller = smaller_batch(batch, self.settings.windows_per_step)
            logger.warning("out of memory with %d windows at once: going on with %d", batch, smaller)
            batch, trainer = smaller, None
            student.zero_grad(set_to_none=True)
            release_memory()
            if last_checkpoint(self.checkpoints) is None:
                put_back(student, start)

    def _trainer(self, student: Any, batch: int, place: torch.device, advance: Any) -> Any:
        from ffprune_env.recovery.trainer import RecoveryTrainer, training_arguments

        arguments = training_arguments(self.settings, self.progress, self.checkpoints, batch, place)
        more = []
        if self.tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter
            from transformers.integrations import TensorBoardCallback

            more.append(TensorBoardCallback(SummaryWriter(str(self.tensorboard))))
        return RecoveryTrainer(
            student, self.distillation, self.train, self.held_out, self.progress, arguments, advance, more
        )

    def _phase(self) -> Any:
        size = f"{self.settings.what_is_trained}, {len(self.train)} windows, {self.settings.objective}"
        return phase("recovery", size, self.progress.steps or 0)

    def _why(self, state: Any) -> str:
        if self.progress.steps is not None and state.global_step >= self.progress.steps:
            return "all tokens were seen"
        if self.progress.at(state.global_step) >= 1:
            return "the time was over"
        return f"the held-out loss was no better in {self.settings.patience} looks"


class _Failure(Exception):  # noqa: N818 - the model from before is kept
    """Training went wrong, in one line; with the state that it was in."""

    def __init__(self, message: str, state: Any) -> None:
        super().__init__(message)
        self.state = state


def first_batch(on_cpu: bool, per_step: int) -> int:
    """Windows per forward pass that are tried first: a CPU gains nothing by more than one."""
    return 1 if on_cpu else per_step


def smaller_batch(batch: int, per_step: int) -> int:
    """The largest number up to half of a batch that divides the windows of a step, so that steps stay the same."""
    return max(size for size in range(1, batch // 2 + 1) if per_step % size == 0)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor what transformers says of its own accord; Trainer sets how much that is, for good."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with quiet_transformers():
            yield
    finally:
        transformers_logging.set_verbosity(before)
