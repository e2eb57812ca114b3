"""Writes the model of a search at sparsities that it never trained, without another search.

    python train/ppo.py --sparsity 0.1:0.5 --run runs/x
    python evaluate/allocate.py runs/x --sparsity 0.27
    python evaluate/allocate.py runs/x --max-loss 5%         # the smallest model that loses no more

What a search has learnt is a function of σ. It is asked, and its answer is calibrated, measured and written as the run
would have done it: with its settings, its model, its texts and its order of heads and channels. The model goes to
s27/model in the folder of the run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from transformers import PreTrainedTokenizerBase

from ffprune_env.budget.allocation import Allocation
from ffprune_env.cli.consoles import fail, say, show_result, start_logging, tell, wide_console
from ffprune_env.cli.flag_groups import AnswerFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.limit_flags import LimitFlags
from ffprune_env.cli.model_flags import SearchedFlags, TrustFlags
from ffprune_env.cli.past_run import RunSettings, load_past_run, read_run_settings
from ffprune_env.cli.progress import showing_phases
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.ledger import Ledger
from ffprune_env.evaluators.rewarded import identity_of_reward
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.export.writable import require_writable_folder
from ffprune_env.limits.limit import Limit
from ffprune_env.limits.smallest import Smallest, smallest_model
from ffprune_env.limits.told import limit_content, limit_lines, limit_table
from ffprune_env.lm.identity import identity_of_settings, identity_of_versions
from ffprune_env.run.about import told_beside
from ffprune_env.run.answer_report import AnswerReport
from ffprune_env.run.config import targets_of
from ffprune_env.run.folder import RunFolder, part_of
from ffprune_env.run.limited import limit_part_of, trial_log
from ffprune_env.run.over_sparsities import sparsities_table
from ffprune_env.run.told_before import MEASURED_WITH, told_before
from ffprune_env.search.finalists import Answer
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.target_settings import SparsitySettings

logger = logging.getLogger("ffprune")
console = wide_console()
_ADVICE = "search it again"


@dataclass(frozen=True, kw_only=True)
class Args(SearchedFlags, SparsitySettings, LimitFlags, AnswerFlags, TrustFlags):
    """What is asked of a run; every field is a flag."""

    to: Annotated[Path | None, tyro.conf.arg(name="out")] = None
    """folder to write to, new or empty, with a folder for each of several sparsities; None: s27/ and the like in the
    folder of the run"""


@dataclass(frozen=True)
class Job:
    """What is asked, checked as far as no model is needed."""

    run: RunFolder
    settings: RunSettings
    policy: Policy
    allocations: Mapping[float, Allocation]
    folders: Mapping[float, Path]
    limit: Limit | None = None
    found: Smallest | None = None
    ledger: Ledger = field(default_factory=Ledger)


def main() -> int:
    """Asks, measures, writes and prints; returns the exit code: 2 if it did not begin, 1 if it could not end."""
    # What to ask for must be said.
    args = read_flags(Args, __doc__, default={"sparsity": (), "baselines": False})
    start_logging(console)
    run = RunFolder(args.of)
    begun = False
    try:
        run.reopen()
        job = plan(args, run)
        with showing_phases(console) as phases, ExitStack() as stack:
            evaluator, tokenizer, test_windows = load(args, job)
            begun = True
            stack.enter_context(evaluator.sharing_dense_pass())
            job = meet_limit(args, job, evaluator, tokenizer, test_windows)
            reports = report(args, job, evaluator, tokenizer, test_windows)
        console.print(phases.table())
        return show(reports, job.found)
    except KeyboardInterrupt:
        kept = "what was measured is kept"
        if args.limit is not None:
            kept = "the models that were tried are kept, and the same command goes on"
        say(f"interrupted; {kept}" if begun else "interrupted before anything was measured")
        return 130
    except (ValueError, OSError, RuntimeError) as error:  # a full disk, no memory
        return fail(error, 1 if begun else 2)
    finally:
        run.unlock()


def plan(args: Args, run: RunFolder) -> Job:
    """Everything that can be refused before a model is loaded is refused here."""
    settings = read_run_settings(run, args.trust_remote_code)
    asked = {field.name: getattr(settings, field.name) for field in fields(EvaluatorSettings)}
    run.require_same(identity_of_settings(asked), advice=_ADVICE)
    args.require_answer()
    if args.save_model:
        require_writable_folder(settings.model)
    searched = targets_of(run.read_config(), run.path)
    policy = Policy.load(run.path)
    wanted, limit = args.targets, args.limit
    if bool(wanted) == (limit is not None):
        given = f"{limit} finds the sparsity itself: leave out --sparsity"
        raise ValueError(given if wanted else "which model? say its --sparsity, or what it may lose, with --max-loss")
    args.require_ppl_rewarded(str(run.read_config().get("reward", "ppl")))
    allocations = {sparsity: policy.allocate(sparsity) for sparsity in wanted}
    if args.to is None:
        folders = {sparsity: part_of(run.path, sparsity) for sparsity in wanted}
    else:
        if args.to.exists() and not (args.to.is_dir() and not any(args.to.iterdir())):
            raise ValueError(f"--out {args.to} is not an empty folder: choose another")
        folders = {sparsity: args.to if len(wanted) == 1 else part_of(args.to, sparsity) for sparsity in wanted}
    for sparsity in wanted if args.to is None and isinstance(searched.sparsity, float | tuple) else ():
        if sparsity in policy.targets:
            own = run.path if len(policy.targets) == 1 else folders[sparsity]
            raise ValueError(
                f"{run.path} was searched at sparsity {sparsity:g}, what it chose is in {own}: ask for another, or add "
                f"--out for what its policy says"
            )
    return Job(run, settings, policy, allocations, folders, limit)


def load(args: Args, job: Job) -> tuple[LMEvaluator, PreTrainedTokenizerBase, torch.Tensor]:
    """The evaluator of the run, its tokenizer and its test text; what has changed since is refused, in one line."""
    run, settings = job.run, job.settings
    past = load_past_run(run, settings)
    model, tokenizer = past.model, past.tokenizer
    args.require_writable_answer(model, tokenizer)
    planned = {purpose: windows for purpose, windows in past.texts.items() if purpose != "test"}
    order = run.require_order(model)
    evaluator = build_evaluator(model, tokenizer, settings.text, settings, order, planned, job.ledger)
    run.require_same(identity_of_reward(evaluator), advice=_ADVICE)
    evaluator.prunable.count(job.policy.units)  # a budget may be in another measure
    return evaluator, tokenizer, past.texts["test"]


def meet_limit(
    args: Args, job: Job, evaluator: LMEvaluator, tokenizer: PreTrainedTokenizerBase, test_windows: torch.Tensor
) -> Job:
    """The job with the smallest model that meets its limit, if it has one."""
    if job.limit is None:
        return job
    model, settings = evaluator.prunable.model, job.settings
    seen = {**evaluator.texts, "test": test_windows}
    windows = args.load_limit_windows(model, tokenizer, settings.text, seen, settings.bos)
    with job.ledger.part("limit", evaluator.devices):
        found = smallest_model(job.policy, evaluator, job.limit, windows, trial_log(job.run, windows))
    at = found.answer.sparsity
    folder = args.to or limit_part_of(job.run.path, at, job.policy.targets)
    return replace(job, found=found, allocations={at: found.answer.allocation}, folders={at: folder})


def report(
    args: Args,
    job: Job,
    evaluator: LMEvaluator,
    tokenizer: PreTrainedTokenizerBase,
    test_windows: torch.Tensor,
) -> list[AnswerReport]:
    """Measures and writes what the policy says, sparsity after sparsity."""
    settings = job.settings
    about, facts = told_beside(settings.model, settings.text, settings.tested_on, settings, evaluator, test_windows)
    about["allocated_by"] = str(job.run.path.resolve())  # whoever reads it may be anywhere
    about[MEASURED_WITH] = identity_of_versions()
    if job.found is not None:
        about["limit"] = limit_content(job.found)
    reports: list[AnswerReport] = []
    for sparsity, allocation in job.allocations.items():
        folder = RunFolder(job.folders[sparsity])
        (folder.path / "plots").mkdir(parents=True, exist_ok=True)
        compared = args.baselines or "uniform" in (folder.read_json("best.json") or {})
        answer = Answer("the policy", job.policy.scores(sparsity), allocation)
        told = told_before(folder, sparsity, answer, evaluator.units, job.run)
        dense = reports[0].dense if reports else None
        result = AnswerReport(
            folder, evaluator, test_windows, sparsity, answer, about, job.ledger.parts, dense, told=told
        )
        result.measure_chosen()
        if args.save_model:
            result.write_model(tokenizer, facts, on_cpu=settings.device_map is not None, gguf=args.gguf)
        if compared:
            result.measure_baselines()
        result.draw_retention()
        reports.append(result)
    return reports


def show(reports: Sequence[AnswerReport], found: Smallest | None) -> int:
    """Prints what a person reads; returns 1 if a model is not there, or not the one that was measured."""
    code = 0
    if found is not None:
        console.print(limit_table(found))
        tell(console, *limit_lines(found))
    for result in reports:
        lines = f"sparsity {result.target:g}; files in {result.run.path}", *result.next_steps()
        code = max(code, show_result(console, [result.table()], lines, result.failure))
    if len(reports) > 1:
        console.print(sparsities_table({result.target: result.results for result in reports}))
    return code


if __name__ == "__main__":
    sys.exit(main())
