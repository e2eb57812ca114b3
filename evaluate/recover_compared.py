"""Does the order of methods survive recovery? The models of a comparison are trained, all alike, and measured again.

    python evaluate/compare.py --text valid.txt --test-text test.txt --sparsity 0.3 --out runs/c
    python evaluate/recover_compared.py runs/c --recover-tokens 105000
    python evaluate/recover_compared.py runs/c --recover-tokens 105000 --only uniform ffn-only ppo --recover-seed 1
    python evaluate/recover_compared.py runs/c --recover-tokens 105000 --data-dir tasks --limit 200   # zero-shot too

What every method ended with is made again from its cell, must have the perplexity that is written there, and is trained
on the same text with the same settings; where that fails it is said, and the others go on. What is finished is kept in
recovered/ of the folder: the same command goes on where it stopped, and another one adds to it. The table is of all
that is there, and goes to recovered.md.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from filelock import FileLock

from ffprune_env.cli.consoles import fail, say, start_logging, tell, wide_console
from ffprune_env.cli.flag_groups import QuestionFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import DeviceFlags, TrustFlags
from ffprune_env.cli.past_run import RunSettings
from ffprune_env.cli.recovery_flags import RecoveryFlags
from ffprune_env.comparison.cell import Cell
from ffprune_env.comparison.folder import BEFORE, ComparisonFolder
from ffprune_env.comparison.measuring import Measuring, load, prepare
from ffprune_env.comparison.questions import Questions
from ffprune_env.comparison.recovered import RecoveredCell, recover_cell, recovered_markdown
from ffprune_env.evaluators.objectives.unseen import unseen_alone
from ffprune_env.evaluators.settings import BatchSettings
from ffprune_env.evaluators.zero_shot import score_tasks
from ffprune_env.evaluators.zero_shot_tasks import open_tasks
from ffprune_env.lm.batches import release_memory
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.identity import ChangedError, identity_of_versions, require_same
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.replacing import replacing
from ffprune_env.recovery.passages import digest_of
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.run.config import checked
from ffprune_env.run.strict_json import as_measured, strict_json

logger = logging.getLogger("ffprune")
console = wide_console()


@dataclass(frozen=True, kw_only=True)
class Args(RecoveryFlags, QuestionFlags, BatchSettings, DeviceFlags, TrustFlags):
    """What is asked of a comparison; every field is a flag. Zero-shot tasks are asked where --data-dir is given."""

    compared: tyro.conf.Positional[Path]
    """folder that evaluate/compare.py filled"""
    only: tuple[str, ...] = ()
    """which cells, by their method (ppo) or by their file (ppo-s30-seed0); none stands for all"""


@dataclass(frozen=True)
class Job:
    """What is asked, checked as far as no model is needed."""

    folder: ComparisonFolder
    settings: RunSettings
    recovery: RecoverySettings
    recovery_text: str | None
    cells: list[Cell]


def main() -> int:
    """Recovers what is missing and prints the table; returns the exit code."""
    args = read_flags(Args, __doc__)
    start_logging(console)
    code = 0
    try:
        job = plan(args)
        try:
            code = fill(args, job)
        except KeyboardInterrupt:
            say("interrupted; what was finished is kept and reported")
            code = 130
        except RuntimeError as error:  # no memory
            code = fail(error, 1)
        report(job)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    return code


def plan(args: Args) -> Job:
    """Everything that can be refused before a model is loaded is refused here."""
    recovery = args.recovery_settings()
    args.require_recovery_text()
    require_in_range("--batch-size", args.batch_size, 1)
    try:
        said = json.loads((args.compared / "settings.json").read_text(encoding="utf-8"))
        manifest = json.loads((args.compared / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{args.compared} is no comparison: evaluate/compare.py makes one by --out") from error
    found = {name: value for name, value in (BEFORE | said).items() if name in RunSettings.__dataclass_fields__}
    found |= {"device": args.device, "trust_remote_code": args.trust_remote_code}
    # A comparison does not keep it, since no figure depends on it; those of before did.
    found |= {} if args.batch_size is None else {"batch_size": args.batch_size}
    settings = checked(RunSettings, found, str(args.compared / "settings.json"))
    settings = replace(settings, bos=manifest.get("made", {}).get("bos", "never"))
    settings.require_texts()
    folder = ComparisonFolder(args.compared, said)
    job = Job(folder, settings, recovery, args.recovery_text, list(cells_of(folder, args.only)))
    require_alike(job)
    return job


def cells_of(folder: ComparisonFolder, only: tuple[str, ...]) -> list[Cell]:
    """The cells that are asked for, by method or by file; ValueError if there are none."""
    found = []
    for file in sorted((folder.path / "cells").glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if only and content["method"] not in only and file.stem not in only:
            continue
        targets = content.get("settings", {}).get("targets")
        told = None if targets is None else content["settings"]
        cell = folder.cell(content["method"], content["target_sparsity"], content["seed"], told)
        found += [] if cell is None else [cell]
    if not found:
        raise ValueError(f"{folder.path} has no such cell: {' '.join(only) or 'none is finished'}")
    return found


def fill(args: Args, job: Job) -> int:
    """Recovers cell after cell what was not yet, and returns the exit code; the model is loaded if there is one."""
    missing, code = [cell for cell in job.cells if not is_recovered(job, cell, args.data_dir is not None)], 0
    if not missing:
        return code
    with ExitStack() as stack:
        tasks = None if args.data_dir is None else stack.enter_context(open_tasks(data_dir=args.data_dir))
        apart = unseen_alone(tasks or {}, job.settings.rewarded, args.data_dir, args.held_out)
        measuring = measuring_of(args, job, tasks, apart)
        if measuring.questions is not None:
            job.folder.require_same("zero_shot.json", measuring.questions.facts())
        loaded = load(measuring, job.folder)
        require_resident(loaded.model, "a recovery")
        settings = job.settings
        text = args.load_recovery_text(
            loaded.model, loaded.tokenizer, settings.text, settings, loaded.texts, settings.test_text
        )
        about: dict[str, Any] = {
            "recovery_text": job.recovery_text,
            "text_digest": digest_of(text.every),
            "versions": identity_of_versions(),
        }
        require_alike(job, about["text_digest"])
        subject = prepare(measuring, job.folder, loaded)
        dense = float((job.folder.dense or {})["dense_test_ppl"])
        for cell in missing:
            require_alike(job, about["text_digest"])  # another process may have begun meanwhile
            logger.info("%s ...", cell.file)
            try:
                found = replace(recover_cell(subject, cell, text, job.recovery, dense), **about)
                keep(job, cell, found)
                logger.info("%s: test PPL %.2f, recovered %.2f", cell.file, found.before_ppl, found.after_ppl)
            except ChangedError:  # of the others none could be kept
                raise
            except (ValueError, RuntimeError) as error:  # one that cannot be is no reason to lose the others
                code = fail(f"{cell.file}: {error}", 1)
            except OSError as error:  # a full disk, where the others would be trained for nothing
                return fail(f"{cell.file}: {error}", 1)
            release_memory()
    return code


def measuring_of(args: Args, job: Job, tasks: Mapping[str, Any] | None, apart: str) -> Measuring:
    """The model and texts of the comparison, in the words of the library."""
    settings = job.settings
    questions = None if tasks is None else Questions(tasks, args.limit, args.data_dir, score_tasks, apart)
    return Measuring(
        settings.model,
        settings.text,
        settings.test_text,
        settings,
        settings.load,
        lambda model, tokenizer: settings.load_texts(model, tokenizer, settings),
        questions=questions,
    )


def file_of(job: Job, cell: Cell, seed: int) -> Path:
    """Where a cell is kept once it is recovered."""
    return job.folder.path / "recovered" / f"{Path(cell.file).stem}-recovery{seed}.json"


def there(folder: ComparisonFolder) -> dict[Path, RecoveredCell]:
    """All that was recovered, by file."""
    files = sorted((folder.path / "recovered").glob("*.json"))
    return {file: as_cell(json.loads(file.read_text(encoding="utf-8"))) for file in files}


def require_alike(job: Job, text_digest: str | None = None) -> None:
    """Raises ChangedError if anything was recovered on another text, with other settings, or by another version.

    Args:
        job: what is asked.
        text_digest: of the text, once it is loaded; None compares what there is with itself.
    """
    asked = {name: value for name, value in asdict(job.recovery).items() if name != "seed"}
    asked |= {"recovery_text": job.recovery_text}
    for file, cell in there(job.folder).items():
        found = {**cell.settings, "recovery_text": cell.recovery_text}
        for name, value in asked.items():
            if found.get(name) != value:
                raise ChangedError(f"{file} was recovered with {name} {found.get(name)!r}, not {value!r}: remove it")
        require_same(cell.versions, identity_of_versions(), f"{file} was recovered", "remove it")
        text_digest = text_digest or cell.text_digest
        if text_digest != cell.text_digest:
            raise ChangedError(f"{file} was recovered on text that has changed since: remove it")


def is_recovered(job: Job, cell: Cell, asks: bool) -> bool:
    """Whether nothing is left to do for a cell; where questions are asked it must have answered some."""
    found = there(job.folder).get(file_of(job, cell, job.recovery.seed))
    return found is not None and (found.zero_shot_after is not None or not asks)


def keep(job: Job, cell: Cell, found: RecoveredCell) -> None:
    """Writes what became of a cell.

    Raises:
        ChangedError: another process has begun to fill the folder with something else meanwhile.
    """
    file = file_of(job, cell, found.recovery_seed)
    with FileLock(job.folder.path / ".lock"):  # as whoever writes to a comparison
        require_alike(job, found.text_digest)
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as scratch:
            scratch.write_text(strict_json(asdict(found), indent=1) + "\n", encoding="utf-8")


def as_cell(content: dict[str, Any]) -> RecoveredCell:
    """A cell as it was written: strict JSON has no number that is infinite."""
    known = as_measured(content)
    return RecoveredCell(**{name: known[name] for name in RecoveredCell.__dataclass_fields__ if name in known})


def report(job: Job) -> None:
    """Prints the table of all that was recovered, and writes it; ChangedError where that was not with the same."""
    require_alike(job)
    cells = list(there(job.folder).values())
    if not cells:
        console.print("nothing was recovered")
        return
    table = recovered_markdown(cells)
    tell(console, table)
    target = job.folder.path / "recovered.md"
    with replacing(target) as scratch:
        scratch.write_text(table, encoding="utf-8")
    console.print(f"{len(cells)} recovered models; the table is in {target}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
