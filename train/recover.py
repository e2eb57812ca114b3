"""Trains the pruned model of a run for a few minutes towards the predictions of the dense one.

    python train/recover.py runs/x                          # once over the calibration text
    python train/recover.py runs/x --recover-minutes 10
    python train/recover.py runs/x/s30 --recovery-text chats.jsonl
    python train/recover.py runs/x --lora 16 --teacher-topk 64   # a large model

The recovered model goes to recovered/, beside model/, and is measured on the test text of the run, which nothing else
saw. What was interrupted goes on where it was when the same command is given again. docs/recovery.md says what it does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ffprune_env.cli.consoles import fail, say, show_result, start_logging, wide_console
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import SearchedFlags, TrustFlags
from ffprune_env.cli.past_run import RunSettings, folders_of, load_past_run, read_run_settings
from ffprune_env.cli.progress import showing_phases
from ffprune_env.cli.recovery_flags import RecoveryFlags
from ffprune_env.lm.batches import release_memory
from ffprune_env.lm.devices import require_resident
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.stored_teacher import FOLDER, store_teacher
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.recovered import RecoveredModel, recover_run, written_before
from ffprune_env.run.recovery_files import WORK

console = wide_console()


@dataclass(frozen=True, kw_only=True)
class Args(SearchedFlags, RecoveryFlags, TrustFlags):
    """What is asked of a recovery; every field is a flag."""


@dataclass(frozen=True)
class Job:
    """What is asked, checked as far as no model is needed."""

    run: RunFolder
    part: RunFolder
    settings: RunSettings
    recovery: RecoverySettings


def main() -> int:
    """Recovers, writes, measures and prints; returns the exit code: 2 if it did not begin, 1 if nothing came of it."""
    args = read_flags(Args, __doc__)
    start_logging(console)
    again = f"what was trained is kept, and python train/recover.py {args.of} with the same flags goes on"
    begun, run, work = False, None, None
    try:
        job = plan(args)
        run, work = job.run, job.part.path / WORK
        run.reopen()
        with showing_phases(console) as phases:
            begun = True
            result = recover(args, job)
        console.print(phases.table())
        return show_result(console, [result.table()], result.summary(), result.failure)
    except KeyboardInterrupt:
        say(f"interrupted; {again}")
        return 130
    except (ValueError, OSError, RuntimeError) as error:  # a full disk, no memory
        kept = work is not None and work.is_dir() and not isinstance(error, ValueError)
        return fail(error, 1 if begun else 2, again if kept else "")
    finally:
        if run is not None:
            run.unlock()


def plan(args: Args) -> Job:
    """Everything that can be refused before a model is loaded is refused here."""
    recovery = args.recovery_settings()
    args.require_recovery_text()
    run, part = folders_of(args.of)
    written_before(part)
    return Job(run, part, read_run_settings(run, args.trust_remote_code), recovery)


def recover(args: Args, job: Job) -> RecoveredModel:
    """Loads what the run saw, and trains its model; a dense model that only writes down what it says leaves first."""
    past, settings = load_past_run(job.run, job.settings), job.settings
    require_resident(past.model, "a recovery")
    device = str(past.model.get_input_embeddings().weight.device)
    text = args.load_recovery_text(past.model, past.tokenizer, settings.text, settings, past.texts, settings.test_text)
    test, teacher = past.texts["test"], past.model
    if job.recovery.teacher_topk is not None:
        work = job.part.path / WORK / FOLDER
        teacher = store_teacher(past.model, text.every, job.recovery.teacher_topk, work)
        del past
        release_memory()
    return recover_run(job.part, teacher, text, test, job.recovery, device, settings.batch_size)


if __name__ == "__main__":
    sys.exit(main())
