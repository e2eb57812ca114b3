"""Finds how much of each layer of a language model to keep: FastForward Pruning, arXiv 2511.18977.

    python train/ppo.py                                   # smollm2-135m on python-docs at σ = 0.2, by damage curves
    python train/ppo.py --init none                       # the same by PPO, from nothing
    python train/ppo.py --model opt-1.3b --text wikitext2 --sparsity 0.3
    python train/ppo.py --config runs/<name>/config.yaml  # the same run again
    python train/ppo.py --resume runs/<name>              # go on with a run that was cut off

By default damage curves decide, and PPO makes no step after them unless --evaluations asks for some. One step of the
environment prunes the model by one allocation and measures its perplexity. What is left in runs/<name>/ is described in
docs/usage.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ffprune_env.budget.sparsity_range import SparsityRange
from ffprune_env.cli.budget_flags import BudgetFlags
from ffprune_env.cli.consoles import fail, say, show_result, start_logging, tell, wide_console
from ffprune_env.cli.flag_groups import AnswerFlags, RunFlags, WorkerFlags
from ffprune_env.cli.limit_flags import LimitFlags, range_for
from ffprune_env.cli.model_flags import ModelFlags
from ffprune_env.cli.progress import showing_phases
from ffprune_env.cli.recovery_flags import RecoverFlags
from ffprune_env.cli.settings import asked_for, parse_settings
from ffprune_env.cli.text_flags import TextFlags
from ffprune_env.cli.used_flags import by_limit, by_recovery, by_timing
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.rewarded import identity_of_reward
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.export.model_card import CardFacts
from ffprune_env.export.writable import require_writable_folder
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.identity import identity_of_model, identity_of_texts, text_names
from ffprune_env.recovery.text import RecoveryText
from ffprune_env.run.about import told_beside
from ffprune_env.run.budget_report import BudgetReport, count_budget
from ffprune_env.run.cost_report import cost_table
from ffprune_env.run.frontier import frontier
from ffprune_env.run.frontier_plot import frontier_plot
from ffprune_env.run.limited import LimitedModel
from ffprune_env.run.over_sparsities import sparsities_table
from ffprune_env.run.recovered import RecoveredModel, recover_run
from ffprune_env.run.report import Report
from ffprune_env.run.sample_log import DifferentSearchError
from ffprune_env.run.session import RunSession
from ffprune_env.run.tensorboard import CostCallback, RetentionCallback, logging_to
from ffprune_env.search.callbacks import CheckpointCallback, InterruptCallback
from ffprune_env.search.policy import make_env
from ffprune_env.search.presets import RUN_PRESETS
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import Outcome, run_search
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.start import Start, StartScores
from ffprune_env.search.unheeded import by_search, require_heeded, require_used
from ffprune_env.search.workers import Workers, WorkersVecEnv

logger = logging.getLogger("ffprune")
console = wide_console()


@dataclass(frozen=True)
class Args(
    WorkerFlags,
    AnswerFlags,
    LimitFlags,
    RecoverFlags,
    BudgetFlags,
    EvaluatorSettings,
    SearchSettings,
    RunFlags,
    TextFlags,
    ModelFlags,
):
    """Settings of a run; every field is a flag, most of them of the groups that scripts share; the last come first."""

    def require_allowed(self) -> None:
        """Raises ValueError for settings that no model is needed to refuse."""
        EvaluatorSettings.require_allowed(self)
        SearchSettings.require_allowed(self)
        self.require_windows()
        self.require_workers(self.device_map)
        self.require_answer()
        self.require_ppl_rewarded(self.reward)
        if self.budget is not None and self.limit is not None:
            raise ValueError(f"--budget {self.budget} says how small, a limit how good the model is to be: give one")
        if self.gguf is not None and isinstance(self.sparsity, SparsityRange) and self.limit is None:
            raise ValueError("--gguf: of a range no model is written; ffprune allocate takes --gguf for any of it")
        if self.save_model:
            require_writable_folder(self.model)
        if self.recover:
            self.recovery_settings()
            self.require_recovery_text()
            if not self.save_model or isinstance(self.sparsity, SparsityRange):
                raise ValueError("--recover trains the model in model/: leave out --no-save-model, and give no range")


@dataclass(frozen=True)
class Job:
    """What a search needs, loaded and checked: the sparsity is known now, whatever it was asked for by."""

    args: Args
    run: RunSession
    tokenizer: PreTrainedTokenizerBase
    evaluator: LMEvaluator
    test_windows: torch.Tensor
    start: Start
    scores: StartScores
    workers: Workers | None
    recovery_text: RecoveryText | None
    limit_windows: torch.Tensor | None
    budget: BudgetReport | None

    def told(self) -> tuple[dict[str, Any], CardFacts]:
        """What ``best.json`` and the model card tell beside the figures of a report."""
        args = self.args
        return told_beside(args.model, args.text, args.tested_on, args, self.evaluator, self.test_windows)


def main() -> int:
    """Runs one search; returns the exit code: 2 if it did not begin, 1 if it could not end, 130 after Ctrl-C."""
    start_logging(console)
    try:
        args = parse_settings(sys.argv[1:], Args, RUN_PRESETS, __doc__)
        asked = asked_for(sys.argv[1:], Args)
        args.require_budget(asked)
        args = replace(args, sparsity=range_for(args.limit, args.sparsity, args.a_min or 0.0, asked))
        args.require_texts()
        args.require_allowed()
        require_heeded(args, asked)
        require_used(asked, (*by_search(args, args), by_recovery(args), by_limit(args), by_timing(args)))
        run = open_run(args)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    begun = False
    kept = f"what was measured is kept, and python train/ppo.py --resume {run.folder.path} goes on"
    try:
        with showing_phases(console) as phases, ExitStack() as stack:
            job = load(args, run, stack)
            begun = True
            outcome = search(job)
            reports = report(job, outcome)
            limited = meet_limit(job, outcome)
            recovered = recover(job, reports)
        console.print(phases.table())
        console.print(cost_table(run.costs.parts))
        codes = [conclude(job, reports)]
        codes += [show_result(console, [x.table()], x.summary(), x.failure) for x in recovered]
        codes += [show_result(console, x.tables(), x.lines(), x.failure) for x in limited]
        return max(codes)
    except KeyboardInterrupt:
        say(f"interrupted at once; {kept}" if begun else "interrupted before the search began; nothing is lost")
        return 130
    except (ValueError, OSError, RuntimeError) as error:  # a full disk, no memory
        resumable = begun and not isinstance(error, DifferentSearchError)
        return fail(error, 1 if begun else 2, kept if resumable else "")
    finally:
        run.folder.give_up()  # which keeps what there is


def open_run(args: Args) -> RunSession:
    """Makes the folder of a run this process's own, a new one or that of a run that goes on."""
    if args.resume is not None:
        return RunSession.reopened(args.resume, asdict(args))
    asked = "s" + "-".join(f"{100 * target:g}" for target in args.targets)
    if args.budget is not None:
        asked = "-".join(args.budget.words).replace("%", "pc")
    return RunSession(args.claim(f"{Path(args.model).name}-{Path(args.text).stem}-{asked}"), asdict(args))


def load(args: Args, run: RunSession, stack: ExitStack) -> Job:
    """Loads what the search needs; what cannot be, or is not what the run was begun with, is refused at once."""
    start = run.start(args)
    model, tokenizer = args.load()
    run.know(identity_of_model(model))
    args.require_writable_answer(model, tokenizer)
    if start.looks:
        require_resident(model, f"--init {args.init}")
    texts, test_windows = args.load_texts(model, tokenizer, args)
    every = {**texts, "test": test_windows}
    limit_windows = None
    if args.limit is not None:
        limit_windows = args.load_limit_windows(model, tokenizer, args.text, every, args.bos)
    recovery_text = None
    if args.recover:
        recovery_text = args.load_recovery_text(model, tokenizer, args.text, args, every, args.test_text)
    run.know(identity_of_texts(every), text_names(args.text, args.test_text, every, args.calibration_text))
    evaluator = build_evaluator(model, tokenizer, args.text, args, run.order(model), texts, run.costs)
    run.know(identity_of_reward(evaluator))
    args, budget = count(args, run, evaluator, tokenizer)
    make_env(args, evaluator)  # what it refuses is refused before minutes are spent
    scores = run.scores(args.targets, len(evaluator.units))
    if scores is None:
        problem = Problem.of(evaluator, args.target, seed=args.seed, a_min=args.lowest, a_max=args.a_max)
        with run.costs.part("start", evaluator.devices):
            scores = start.scores(problem, args.targets)
    workers = None
    if args.workers:
        workers = Workers.like(evaluator, args.workers, asdict(args) | args.needless, args.ray_address, run.identity)
        stack.callback(workers.close)
    run.begin(evaluator, start, scores, None if budget is None else budget.counted())
    return Job(
        args=args, run=run, tokenizer=tokenizer, evaluator=evaluator, test_windows=test_windows, start=start,
        scores=scores, workers=workers, recovery_text=recovery_text, limit_windows=limit_windows, budget=budget,
    )  # fmt: skip


def count(
    args: Args, run: RunSession, evaluator: LMEvaluator, tokenizer: PreTrainedTokenizerBase
) -> tuple[Args, BudgetReport | None]:
    """The settings with the sparsity that a budget comes to, and what is known of the budget, if there is one."""
    if args.budget is None:
        return args, None
    server = args.server(args.gguf, str(evaluator.prunable.device), args.trust_remote_code)
    budget = count_budget(args.budget, evaluator.prunable, tokenizer, args.gguf, server, run.counted())
    args = replace(args, sparsity=budget.measure.sparsity(args.budget, args.a_min or 0.0, args.a_max))
    SearchSettings.require_allowed(args)
    logger.info("%s, σ = %.4g", budget.asked(), args.sparsity)
    return args, budget


def search(job: Job) -> Outcome:
    """Trains the policy and chooses what it found; Ctrl-C ends it early."""
    args, folder, log, units = job.args, job.run.folder, job.run.log, job.evaluator.units
    env = None
    if job.workers is not None:
        envs = [make_env(args, job.evaluator) for _ in range(args.per_update)]
        env = WorkersVecEnv(envs, job.workers, log.note)
    made = len(log.recorded)
    checkpoint = CheckpointCallback(folder.checkpoints / "policy.zip", after=made)
    with InterruptCallback() as interrupt, logging_to(folder) as events:
        callbacks = [RetentionCallback(units), CostCallback(job.run.costs, after=made), checkpoint, interrupt]
        outcome = run_search(
            args,
            job.evaluator,
            job.start,
            job.scores,
            env=env,
            listeners=[log],
            callbacks=callbacks,
            logger=events,
            note=log.note,
            ledger=job.run.costs,
        )
    job.run.costs.save(len(outcome.samples))
    outcome.learned.save(folder.checkpoints)
    if interrupt.interrupted:
        done = f"stopped after {len(outcome.samples)} of {args.total} evaluations"
        logger.warning("Ctrl-C: %s; --resume %s makes the others", done, folder.path)
    outcome = replace(outcome, seconds=log.seconds + outcome.seconds)
    logger.info("%s", outcome.told())
    return outcome


def report(job: Job, outcome: Outcome) -> list[Report]:
    """Of every sparsity measures and writes what was chosen, then measures what it is compared with.

    With a limit nobody asked for a sparsity: that which meets it is the only one (:func:`meet_limit`).
    """
    args, spent = job.args, job.run.costs.parts
    about, facts = job.told()
    reports: list[Report] = []
    with job.evaluator.sharing_dense_pass():
        for target in args.targets if args.limit is None else ():
            run = job.run.folder if len(args.targets) == 1 else job.run.folder.part(target)
            settings, dense = replace(args, sparsity=target), reports[0].dense if reports else None
            result = Report(run, job.evaluator, job.test_windows, outcome, settings, about, spent, dense, job.budget)
            result.measure_chosen()
            job.run.costs.add("calibration", result.calibrating)
            if args.save_model and not isinstance(args.sparsity, SparsityRange):
                result.write_model(job.tokenizer, facts, on_cpu=args.device_map is not None, gguf=args.gguf)
            if args.baselines:
                result.measure_baselines()
            result.draw(asdict(settings))
            reports.append(result)
    if len(reports) > 1:
        drawn = frontier_plot(frontier(job.run.folder.path), Path(args.model).name, Path(args.tested_on).name)
        job.run.folder.save_plot("frontier", drawn)
    return reports


def meet_limit(job: Job, outcome: Outcome) -> list[LimitedModel]:
    """Looks for the smallest model that loses no more than was allowed, if that was asked for, and writes it.

    Then it measures what that is compared with, at the same sparsity.
    """
    args = job.args
    if args.limit is None or job.limit_windows is None:
        return []
    about, facts = job.told()
    with job.evaluator.sharing_dense_pass():
        try:
            made = LimitedModel.of(
                job.run.folder, job.evaluator, outcome.learned, args.limit, job.limit_windows, job.test_windows, about,
                job.run.costs,
            )  # fmt: skip
        finally:  # what was tried is not tried again, so that what it cost is written down
            job.run.costs.save(len(outcome.samples))
        if made.report is not None and args.save_model:
            made.report.write_model(job.tokenizer, facts, on_cpu=args.device_map is not None, gguf=args.gguf)
        if made.report is not None and args.baselines:
            made.report.measure_baselines()
            made.report.draw_retention()
    return [made]


def recover(job: Job, reports: Sequence[Report]) -> list[RecoveredModel]:
    """Trains the models that were written towards the dense one, if that was asked for."""
    if job.recovery_text is None:
        return []
    args, dense, settings = job.args, job.evaluator.prunable.model, job.args.recovery_settings()
    device = "cpu" if args.device_map is not None else str(job.evaluator.prunable.device)
    return [
        recover_run(x.run, dense, job.recovery_text, job.test_windows, settings, device, args.batch_size)
        for x in reports
        if x.failure is None
    ]


def conclude(job: Job, reports: Sequence[Report]) -> int:
    """Prints what a person reads at the end; returns 1 if a model is not there, or not the one that was measured."""
    args = job.args
    of_range = isinstance(args.sparsity, SparsityRange)
    code = 0 if of_range else max(show(args, result) for result in reports)
    if len(reports) > 1:
        console.print(sparsities_table({result.target: result.results for result in reports}))
    if of_range and args.limit is None:
        path, outcome = job.run.folder.path, reports[0].outcome
        made = f"no search, {reports[0].answer.name} as it is"
        if outcome.samples:
            made = f"{len(outcome.samples)} evaluations in {outcome.seconds:.0f} s"
        tell(
            console,
            f"{made}; files in {path}",
            f"of a range no model is written; there is one for any sparsity in {args.sparsity}:",
            f"write it:    ffprune allocate {path} --sparsity {args.targets[len(args.targets) // 2]:g}",
        )
    return code


def show(args: Args, result: Report) -> int:
    """Prints what a person reads of one sparsity; returns 1 if its model is not there, or not the one measured."""
    lines = [*result.met(), result.summary(), *result.next_steps()]
    if args.preset == "quick":
        lines.insert(0, "A quick look: little text, and a start of two steps. For figures leave out --quick.")
    return show_result(console, [result.table()], lines, result.failure)


if __name__ == "__main__":
    sys.exit(main())
