"""Searches how much of each layer of a language model to keep, with PPO: FastForward Pruning, arXiv 2511.18977.

    python train/ppo.py                                   # smollm2-135m on python-docs at σ = 0.2
    python train/ppo.py --model opt-1.3b --text wikitext2 --sparsity 0.3
    python train/ppo.py --config runs/<name>/config.yaml  # the same run again
    python train/ppo.py --resume runs/<name>              # go on with a run that was cut off

One environment step prunes the model by one allocation and measures its perplexity; what it leaves in runs/<name>/ is
described in docs/usage.md.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import configure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ffprune_env.cli.consoles import fail, say, start_logging, wide_console
from ffprune_env.cli.flag_groups import ModelFlags, RunFlags, TextFlags, WorkerFlags
from ffprune_env.cli.progress import showing_phases
from ffprune_env.cli.settings import parse_settings
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.export.model_card import CardFacts
from ffprune_env.export.writable import require_writable, require_writable_folder
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.identity import (
    identity_of_model,
    identity_of_settings,
    identity_of_texts,
    identity_of_versions,
    text_names,
)
from ffprune_env.pruning.stored_order import order_as_json
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.provenance import machine_facts
from ffprune_env.run.report import Report
from ffprune_env.run.sample_log import DifferentSearchError, SampleLog
from ffprune_env.run.start_file import read_start, start_content
from ffprune_env.run.tensorboard import RetentionCallback
from ffprune_env.search.callbacks import CheckpointCallback, InterruptCallback
from ffprune_env.search.policy import make_env
from ffprune_env.search.presets import PRESETS
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import Outcome, run_search
from ffprune_env.search.saved_policy import copy_policy
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.other_run import OtherRun
from ffprune_env.search.starts.parse import NAMES, parse_start
from ffprune_env.search.starts.start import Start, StartScores
from ffprune_env.search.workers import Workers, WorkersVecEnv, require_same_rollouts
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows

logger = logging.getLogger("ffprune")
console = wide_console()


@dataclass(frozen=True)
class Args(ModelFlags, TextFlags, RunFlags, WorkerFlags, EvaluatorSettings, SearchSettings):
    """Settings of a run; every field is a flag, most of them of the groups that scripts share."""

    save_model: bool = True
    """write the pruned model to model/ in the folder of the run, and measure it as read back from there"""
    baselines: bool = True
    """measure uniform and ffn-only beside the chosen model, once that is written"""

    def require_allowed(self) -> None:
        """Raises ValueError for settings that no model is needed to refuse."""
        EvaluatorSettings.require_allowed(self)
        SearchSettings.require_allowed(self)
        self.require_windows()
        self.require_workers(self.device_map)
        if self.save_model:
            require_writable_folder(self.model)


@dataclass(frozen=True)
class Job:
    """What a search needs, loaded and checked."""

    run: RunFolder
    tokenizer: PreTrainedTokenizerBase
    evaluator: LMEvaluator
    test_windows: torch.Tensor
    start: Start
    scores: StartScores
    log: SampleLog
    workers: Workers | None


def main() -> int:
    """Runs one search; returns the exit code: 2 if it did not begin, 1 if it could not end, 130 after Ctrl-C."""
    start_logging(console)
    try:
        args = parse_settings(sys.argv[1:], Args, PRESETS, __doc__)
        run = open_folder(args)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    begun = False
    kept = f"what was measured is kept, and python train/ppo.py --resume {run.path} goes on"
    try:
        with showing_phases(console) as phases, ExitStack() as stack:
            job = load(args, run, stack)
            begun = True
            outcome = search(args, job)
            stack.enter_context(job.evaluator.sharing_dense_pass())
            reports = [report(replace(args, sparsity=target), job, outcome) for target in args.targets]
        console.print(phases.table())
        return max(show(args, result) for result in reports)
    except KeyboardInterrupt:
        say(f"interrupted at once; {kept}" if begun else "interrupted before the search began; nothing is lost")
        return 130
    except (ValueError, OSError, RuntimeError) as error:  # a full disk, no memory
        resumable = begun and not isinstance(error, DifferentSearchError)
        return fail(error, 1 if begun else 2, kept if resumable else "")
    finally:
        run.give_up()  # which keeps what there is


def open_folder(args: Args) -> RunFolder:
    """Makes the folder of the run this process's own; of a run that goes on, checks that it is the same."""
    args.require_texts()
    if args.resume is None:
        args.require_allowed()
        asked = "-".join(f"{100 * target:g}" for target in args.targets)
        return args.claim(f"{Path(args.model).name}-{Path(args.text).stem}-s{asked}")
    run = RunFolder(args.resume)
    run.reopen()
    try:
        require_same_rollouts(run.read_config().get("workers", 0), args.workers)
        run.require_same({**identity_of_versions(), **identity_of_settings(what_was_asked(args))})
        args.require_allowed()
    except BaseException:
        run.give_up()
        raise
    return run


def load(args: Args, run: RunFolder, stack: ExitStack) -> Job:
    """Loads what the run needs, and writes down what that is; of a run that goes on, checks that it is the same."""
    copied = run.path / "init"  # the other run may have changed since
    start = parse_start(replace(args, init=str(copied)) if copied.is_dir() else args)
    log = SampleLog(run.samples)
    model, tokenizer = args.load()
    identity = {**identity_of_versions(), **identity_of_settings(what_was_asked(args)), **identity_of_model(model)}
    if args.resume is not None:  # before the texts are cut
        run.require_same(identity, args.model)
    require_possible(args, start, model)
    test_windows = args.load_test(model, tokenizer)
    planned = load_planned_windows(model, tokenizer, args.text, args).texts
    require_unseen(test_windows, *planned.values())
    texts = {**planned, "test": test_windows}
    identity |= identity_of_texts(texts)
    if args.resume is not None:
        run.require_same(identity, args.model, text_names(args.text, args.test_text, texts))
    order = None if args.resume is None else run.require_order(model)
    evaluator = build_evaluator(model, tokenizer, args.text, args, order, planned)
    make_env(args, evaluator)  # what it refuses is refused before minutes are spent
    scores = read_start(run.starts, args.targets, len(evaluator.units)) if args.resume is not None else None
    if scores is None:
        problem = Problem.of(evaluator, args.target, seed=args.seed, a_min=args.a_min, a_max=args.a_max)
        scores = start.scores(problem, args.targets)
    workers = None
    if args.workers:
        workers = Workers.like(evaluator, args.workers, asdict(args), args.ray_address, identity)
        stack.callback(workers.close)
    facts = machine_facts(model)
    if args.resume is None:
        run.begin(asdict(args), identity, order_as_json(evaluator.prunable), seed=args.seed, **facts)
        if isinstance(start, OtherRun):
            copy_policy(args.init, copied)
    else:
        run.warn_of_changes(facts)
        logger.info("%d of %d evaluations were made before", len(log.recorded), args.total)
    run.write_json(run.starts.name, start_content(scores))
    log.remind(evaluator)
    return Job(run, tokenizer, evaluator, test_windows, start, scores, log, workers)


def what_was_asked(args: Args) -> dict[str, Any]:
    """All settings by name; a policy to start from is copied, so that of it no more than that there is one counts."""
    return asdict(args) | ({} if args.init in NAMES else {"init": "a run"})


def require_possible(args: Args, start: Start, model: PreTrainedModel) -> None:
    """Raises ValueError for what this model cannot be asked for."""
    if args.save_model or start.looks:
        require_resident(model, "--save-model" if args.save_model else f"--init {args.init}")
    if args.save_model:
        require_writable(model)


def search(args: Args, job: Job) -> Outcome:
    """Trains the policy and chooses what it found; Ctrl-C ends it early."""
    run, log, units = job.run, job.log, job.evaluator.units
    env = None
    if job.workers is not None:
        envs = [make_env(args, job.evaluator) for _ in range(args.per_update)]
        env = WorkersVecEnv(envs, job.workers, log.note)
    written_before = run.events()
    with InterruptCallback() as interrupt:
        outcome = run_search(
            args,
            job.evaluator,
            job.start,
            job.scores,
            env=env,
            listeners=[log],
            callbacks=[
                RetentionCallback(units),
                CheckpointCallback(run.checkpoints / "policy.zip", after=len(log.recorded)),
                interrupt,
            ],
            logger=configure(str(run.tensorboard), ["tensorboard"]),
            note=log.note,
        )
    for events in written_before:  # those of this process tell the whole search
        events.unlink()
    outcome.learned.save(run.checkpoints)
    if interrupt.interrupted:
        done = f"stopped after {len(outcome.samples)} of {args.total} evaluations"
        logger.warning("Ctrl-C: %s; --resume %s makes the others", done, run.path)
    outcome = replace(outcome, seconds=log.seconds + outcome.seconds)
    for line in outcome.told():
        logger.info("%s", line)
    return outcome


def report(args: Args, job: Job, outcome: Outcome) -> Report:
    """Measures and writes what was chosen at one sparsity, then measures what it is compared with."""
    run = job.run if len(outcome.answers) == 1 else job.run.part(args.target)
    about = {"text": args.text, "test_text": args.tested_on, "ridge": args.ridge, "calibration_asked": args.calibration}
    result = Report(run, job.evaluator, job.test_windows, outcome, args, about)
    result.measure_chosen()
    if args.save_model:
        facts = CardFacts(
            base_model=Path(args.model).name if Path(args.model).exists() else args.model,
            protocol="{} test text, {} windows of {} tokens".format(Path(args.tested_on).name, *job.test_windows.shape),
        )
        result.write_model(job.tokenizer, facts, on_cpu=args.device_map is not None)
    if args.baselines and args.preset != "quick":
        result.measure_baselines()
    result.draw(asdict(args))
    return result


def show(args: Args, result: Report) -> int:
    """Prints what a person reads at the end; returns 1 if the model is not there, or not the one that was measured."""
    console.print(result.table())
    if args.preset == "quick":
        console.print("A quick look: little text, few evaluations and no baselines. For figures leave out --quick.")
    for line in (result.summary(), *result.next_steps()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0 if result.failure is None else fail(result.failure, 1)


if __name__ == "__main__":
    sys.exit(main())
