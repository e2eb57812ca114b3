"""Searches how much of each layer of a language model to keep, with PPO: FastForward Pruning, arXiv 2511.18977.

    python train/ppo.py                                   # smollm2-135m on python-docs at σ = 0.2
    python train/ppo.py --model opt-1.3b --text wikitext2 --sparsity 0.3
    python train/ppo.py --config runs/<name>/config.yaml  # the same run again
    python train/ppo.py --resume runs/<name>              # go on with a run that was cut off

One environment step prunes the model by one allocation and measures its perplexity; the files it leaves in
runs/<name>/ are described in the README.
"""

from __future__ import annotations

import logging
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from transformers import PreTrainedTokenizerBase

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.cli.consoles import wide_console
from ffprune_env.cli.settings import parse_settings, require_in_range, resumes
from ffprune_env.env import PruneBanditEnv, measure_reward
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.export.folder import save_pruned
from ffprune_env.export.model_card import CardFacts
from ffprune_env.export.writable import require_writable, require_writable_folder
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.identity import (
    Identity,
    identity_of_model,
    identity_of_settings,
    identity_of_texts,
    identity_of_versions,
    text_names,
)
from ffprune_env.lm.loss import perplexity
from ffprune_env.lm.models import DeviceMap, load_model
from ffprune_env.lm.phases import phase
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.same_model import require_same_model, rounding_tolerance
from ffprune_env.pruning.calibration import Storage
from ffprune_env.pruning.criteria import CRITERIA
from ffprune_env.pruning.stored_order import ORDER, order_as_json
from ffprune_env.run.final_events import log_final
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.plots import learning_curve_plot, retention_plot
from ffprune_env.run.results import (
    Measured,
    PolicyResult,
    best_policy,
    label,
    measure_policies,
    reference_policies,
    results_table,
)
from ffprune_env.run.sample_log import DifferentSearchError, SampleLog
from ffprune_env.search.callbacks import (
    CheckpointCallback,
    InterruptCallback,
    ProgressiveSchedulingCallback,
    SampleCallback,
)
from ffprune_env.search.ppo import choose, make_env, make_policy, start_means
from ffprune_env.search.problem import Meter, Problem
from ffprune_env.search.samples import Archive, Sample
from ffprune_env.search.saved_policy import copy_policy, require_policy, save_policy
from ffprune_env.search.schedule import ProgressiveSchedule
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.start import STARTS, read_starts, start_scores
from ffprune_env.search.workers import Workers, WorkersVecEnv, require_same_rollouts
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows, windows_made
from ffprune_env.texts.windows import load_test_windows

logger = logging.getLogger("ffprune")
console = wide_console()
errors = Console(stderr=True, soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Args(SearchSettings):
    """Settings of a run; every field is a flag, and so are those of the search."""

    preset: Literal["default", "paper"] = "default"
    """defaults of the search flags: what worked best here, or the paper's own"""
    run: str | None = None
    """folder of the run, new or empty; by default runs/<model>-<text>-s<sparsity>-<time>"""

    model: str = "smollm2-135m"
    """smollm2-135m, opt-125m, opt-1.3b, llama-7b, ..., a local folder, or a hub id owner/repository"""
    dtype: str = "auto"
    """auto (bfloat16 where the hardware multiplies it fast), bfloat16, float16 or float32"""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1, ..."""
    device_map: DeviceMap | None = None
    """auto spreads a model that is too large for one device over all GPUs, host memory and disk; not with --workers.
    What is on host or disk is neither calibrated nor written"""
    max_memory: str | None = None
    """with --device-map auto, what the model may take of every device, such as 6GB; None: what is free"""
    trust_remote_code: bool = False
    """run Python code that a checkpoint brings along; it is not saved, and so to be said again with --resume and
    --config"""

    text: str = "python-docs"
    """search and calibration text: python-docs, wikitext2, c4, or a .txt, .jsonl, .csv, .parquet, .raw, ... file"""
    test_text: str | None = None
    """test text; by default the test part of --text. The search never sees it"""
    seq_len: int = 1024
    """tokens per window of search and calibration text"""
    calibration_windows: int = 96
    """windows of calibration text that the pruning criterion and the calibration see, or all there are if those are
    fewer"""
    curve_windows: int = 16
    """further windows of search text that the damage curves of the start look at, if --init asks for them; fewer where
    the text is short"""
    test_seq_len: int = 2048
    """tokens per window of test text"""
    test_windows: int | None = 8
    """windows of test text, from its beginning; None takes all"""
    batch_size: int | None = None
    """windows per forward pass; None: by device and window length. Halved where memory runs out"""

    channels_per_group: int = 32
    """FFN channels that are removed at once, those next in rank: some hardware multiplies matrices faster where columns
    come in multiples of 8, 16 or 32. Fewer where that would leave an FFN less than 32 groups, or groups as large as a
    head"""
    criterion: str = "surgeon"
    """how heads and channels are ranked: surgeon (what ridge calibration restores worst), wanda (the paper's), fisher,
    wanda+fisher, or FLAP's wifv"""
    calibrated: bool = True
    """reward the model with its surviving weights re-fitted. Without, the model that is only cut is rewarded, and what
    is reported and written is re-fitted all the same unless --ridge is None"""
    ridge: float | None = 0.01
    """λ of that calibration, as a fraction of the mean diagonal of G; None: no calibration at all"""
    factor_storage: Storage = "device"
    """where the calibration keeps its factors: device, or cpu where they do not fit beside the model"""
    sequential: bool = True
    """calibrate the models that are reported, and written, once more: in sequence, each unit for what flows into it"""
    workers: int = 0
    """measure the candidates of a rollout side by side in so many Ray actors, one per GPU or, with one thread each, per
    CPU; 0 measures one after another in this process"""
    ray_address: str | None = None
    """of a running Ray cluster that the workers live on; None starts one on this machine"""
    save_model: bool = True
    """write the pruned model to model/ in the folder of the run, and measure it as read back from there"""


# What the default's settings are worth, one changed at a time: docs/presets.md.
PRESETS: dict[str, Args] = {
    "default": Args(),
    "paper": Args(
        preset="paper",
        calibrated=False,
        sequential=False,
        channels_per_group=1,
        criterion="wanda",
        mapping="greedy",
        timesteps=1000,
        k=0.01,
        t0=500.0,
        ramp_sparsity=True,
        final_samples=4,
        init="none",
        learning_rate=1e-4,
        n_steps=64,
        clip_range=0.2,
        log_std_init=0.0,
    ),
}


@dataclass(frozen=True)
class Job:
    """What a search needs, loaded and checked."""

    run: RunFolder
    tokenizer: PreTrainedTokenizerBase
    evaluator: LMEvaluator
    env: PruneBanditEnv | WorkersVecEnv
    starts: dict[float, FloatArray]
    log: SampleLog
    test_windows: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """What a search leaves: the policy, all samples, the best of them by target, its schedule, and its seconds."""

    policy: PPO
    samples: list[Sample]
    archives: dict[float, Archive]
    schedule: ProgressiveSchedule
    seconds: float

    def samples_for(self, target: float) -> list[Sample]:
        """Those of one target."""
        return [sample for sample in self.samples if self.schedule.target(sample.step) == target]


def main() -> int:
    """Runs one search; returns the exit code."""
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        args = parse_settings(sys.argv[1:], PRESETS, description=__doc__)
        if resumes(sys.argv[1:]) and args.run is not None and (Path(args.run) / "init").is_dir():
            args = replace(args, init=str(Path(args.run) / "init"))  # the other run may have changed since
        job = prepare(args, resumes(sys.argv[1:]))
    except (ValueError, OSError, RuntimeError) as error:
        errors.print("[bold red]error:[/]", escape(" ".join(str(error).split())))
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted before the search began; nothing is lost")
        return 130
    try:
        outcome = train(args, job)
        return max(report(replace(args, sparsity=target), part(args, job, target), outcome) for target in args.targets)
    except KeyboardInterrupt:
        errors.print(f"interrupted at once; {kept(job)}")
        return 130
    except DifferentSearchError as error:
        errors.print("[bold red]error:[/]", escape(" ".join(str(error).split())))
        return 1
    except (ValueError, OSError, RuntimeError) as error:  # a full disk, no memory
        errors.print("[bold red]error:[/]", escape(" ".join(str(error).split())), f"({kept(job)})")
        return 1
    finally:
        job.run.unlock()
        if isinstance(job.env, WorkersVecEnv):
            job.env.workers.close()


def kept(job: Job) -> str:
    """What to tell the user of a run that was cut off."""
    return f"what was measured is kept, and python train/ppo.py --resume {escape(str(job.run.path))} goes on"


def prepare(args: Args, resume: bool = False) -> Job:
    """Loads and checks everything that can be wrong, and when all of it is right makes the run folder.

    Args:
        args: the settings.
        resume: whether the folder is that of a run to go on with.
    """
    run = open_folder(args, resume)
    try:
        return load(args, run, resume)
    except BaseException:  # Ctrl-C as well
        run.give_up()
        raise


def open_folder(args: Args, resume: bool) -> RunFolder:
    """Makes the folder of the run this process's own, before the work of minutes begins; nobody else gets it then."""
    if resume:
        run = RunFolder(args.run or "")
        run.reopen()
        try:
            require_same_rollouts(run.read_config().get("workers", 0), args.workers)
            run.require_same({**identity_of_versions(), **identity_of_settings(what_was_asked(args))})
            check(args)
        except BaseException:
            run.give_up()
            raise
        return run
    check(args)
    if args.run is not None:
        run = RunFolder(args.run)
        run.claim()
        return run
    asked = "-".join(f"{100 * target:g}" for target in args.targets)
    name = f"{Path(args.model).name}-{Path(args.text).stem}-s{asked}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunFolder.claim_next(Path("runs") / name)


def load(args: Args, run: RunFolder, resume: bool) -> Job:
    """Loads what the run needs, and writes down what that is; of a run that goes on, checks that it is the same."""
    log = SampleLog(run.samples)
    model, tokenizer = load_model(
        args.model, args.dtype, args.device, args.trust_remote_code, args.device_map, args.max_memory
    )
    identity = {**identity_of_versions(), **identity_of_settings(what_was_asked(args)), **identity_of_model(model)}
    if resume:  # before the texts are cut
        run.require_same(identity, args.model)
    if args.save_model or args.looks:
        require_resident(model, "--save-model" if args.save_model else f"--init {args.init}")
    if args.save_model:
        require_writable(model)
    test_windows = load_test_windows(
        args.text, args.test_text, tokenizer, args.test_seq_len, args.test_windows, model=model
    )
    planned = load_planned_windows(
        model,
        tokenizer,
        args.text,
        seq_len=args.seq_len,
        samples=args.samples,
        final_samples=args.final_samples,
        curve_windows=args.curve_windows,
        calibration_windows=args.calibration_windows,
    ).texts
    require_unseen(test_windows, *planned.values())
    texts = {**planned, "test": test_windows}
    identity |= identity_of_texts(texts)
    if resume:
        run.require_same(identity, args.model, text_names(args.text, args.test_text, texts))
    order = run.order(model) if resume else None
    if resume and order is None:
        raise ValueError(
            f"{run.path} holds no {ORDER}, and so does not say which heads and channels it measured: start a new run, "
            f"without --resume"
        )
    evaluator = build_evaluator(model, tokenizer, args.text, **measuring(args), texts=planned, order=order)
    env = make_env(args, evaluator)
    kept_starts = read_starts(run.starts, args.targets, len(evaluator.units)) if resume else None
    starts = kept_starts or find_starts(args, evaluator)
    device = evaluator.prunable.device
    workers = start_workers(args, evaluator, identity) if args.workers else None
    facts = {"device": str(device), "dtype": str(model.dtype), "threads": torch.get_num_threads()}
    facts["python"] = platform.python_version()  # its language reference is a text
    facts["hardware"] = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if not resume:
        run.begin(asdict(args), identity, order_as_json(evaluator.prunable), seed=args.seed, **facts)
        if args.init not in ("none", *STARTS):
            copy_policy(args.init, run.path / "init")
    else:
        run.warn_of_changes(facts)
        logger.info("%d of %d evaluations were made before", len(log.recorded), args.evaluations)
    run.write_json(run.starts.name, {str(target): scores for target, scores in starts.items()})
    log.remind(evaluator)
    if workers is None:
        return Job(run, tokenizer, evaluator, env, starts, log, test_windows)
    envs = WorkersVecEnv([make_env(args, evaluator) for _ in range(args.rollout)], workers, log.note)
    return Job(run, tokenizer, evaluator, envs, starts, log, test_windows)


def check(args: Args) -> None:
    """Raises ValueError for settings that no model is needed to refuse."""
    args.require_allowed()
    for flag, value, least in (
        ("--batch-size", args.batch_size, 1),
        ("--workers", args.workers, 0),
        ("--calibration-windows", args.calibration_windows, 1),
        ("--curve-windows", args.curve_windows, 1),
        ("--channels-per-group", args.channels_per_group, 1),
        ("--test-windows", args.test_windows, 1),
    ):
        require_in_range(flag, value, least)
    if args.calibrated and args.ridge is None:
        raise ValueError("--calibrated needs a calibration: give --ridge a number, or say --no-calibrated")
    if args.ray_address is not None and not args.workers:
        raise ValueError("--ray-address says where workers live: say how many with --workers")
    if args.workers and args.device_map is not None:
        raise ValueError("a worker has one device: leave out --workers with --device-map")
    if args.workers and find_spec("ray") is None:
        raise ValueError("--workers needs Ray: pip install -e '.[ray]'")
    if args.workers > args.rollout:
        logger.warning("%d workers, and no more than --n-steps %d candidates at a time", args.workers, args.rollout)
    if args.criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {args.criterion!r}; allowed are {', '.join(CRITERIA)}")
    if args.init not in ("none", *STARTS):
        if not Path(args.init).is_dir():
            starts = ", ".join(("none", *STARTS))
            raise ValueError(f"--init must be {starts} or the folder of a run, got {args.init!r}")
        require_policy(args.init)
    if args.save_model:
        require_writable_folder(args.model)


def what_was_asked(args: Args) -> dict[str, Any]:
    """All settings by name; a policy to start from is copied, so that of it no more than that there is one counts."""
    return asdict(args) | ({} if args.init in ("none", *STARTS) else {"init": "a run"})


def measuring(args: Args) -> dict[str, Any]:
    """How the model is ranked, calibrated and measured: arguments of build_evaluator."""
    same = ("seq_len", "final_samples", "curve_windows", "calibration_windows")
    same += ("channels_per_group", "criterion", "batch_size")
    named = {name: getattr(args, name) for name in (*same, "calibrated", "ridge", "factor_storage", "sequential")}
    return {"n_samples": args.samples, **named}


def start_workers(args: Args, evaluator: LMEvaluator, identity: Identity) -> Workers:
    """Workers that measure what this process would, of the same heads and channels in the same order."""
    device = evaluator.prunable.device.type
    where = {"dtype": args.dtype, "device": device, "trust_remote_code": args.trust_remote_code}
    order = [members.cpu().numpy() for members in evaluator.prunable.order]
    named = {"model": args.model, "text": args.text, **where, **measuring(args), "order": order}
    return Workers(args.workers, named, args.ray_address, device == "cuda", identity)


def find_starts(args: Args, evaluator: LMEvaluator) -> dict[float, FloatArray]:
    """The scores that the policy's mean starts from, by target; of a single one also around it."""
    problem = Problem(
        evaluator.prunable,
        evaluator.statistics,
        Meter(evaluator, 0),
        args.target,
        args.seed,
        args.a_min,
        args.a_max,
        evaluator.calibration if args.calibrated else None,
        evaluator.texts["curves"],
    )
    return start_scores(args, problem)


def train(args: Args, job: Job) -> Outcome:
    """Trains the policy."""
    run, evaluator, env = job.run, job.evaluator, job.env
    policy = make_policy(args, env, job.starts)
    written_before = run.events()
    policy.set_logger(configure(str(run.tensorboard), ["tensorboard"]))
    schedule = args.schedule()
    checkpoint = CheckpointCallback(run.checkpoints / "policy.zip", after=len(job.log.recorded))
    samples: list[Sample] = []
    archives = {target: Archive(target, args.finalists) for target in args.targets}

    def keep(sample: Sample) -> None:
        archives[schedule.target(sample.step)](sample)  # of a target near this one a lighter pruning would look better

    started = time.perf_counter()
    with InterruptCallback() as interrupt, progress_bar(args.evaluations) as show:
        record = SampleCallback(evaluator.units, samples.append, keep, job.log, show)
        policy.learn(args.evaluations, [ProgressiveSchedulingCallback(schedule), record, checkpoint, interrupt])
    seconds = job.log.seconds + time.perf_counter() - started
    for events in written_before:  # those of this process tell the whole search
        events.unlink()
    checkpoint.save()
    starts = start_means(args, job.starts)
    save_policy(policy, run.checkpoints, evaluator.units, args.meaning(), args.targets, starts)
    if interrupt.interrupted:
        logger.warning(
            "Ctrl-C: stopped after %d of %d evaluations; --resume %s makes the others",
            len(samples),
            args.evaluations,
            run.path,
        )
    return Outcome(policy, samples, archives, schedule, seconds)


def part(args: Args, job: Job, target: float) -> Job:
    """The job of one target: of several each leaves its files in a folder of its own."""
    return job if len(args.targets) == 1 else replace(job, run=job.run.part(target))


def report(args: Args, job: Job, outcome: Outcome) -> int:
    """Measures the chosen policy and those it is compared with on test text, and leaves files and table.

    Returns:
        The exit code: 1 if all is there but the model, or it is not the one that was measured.
    """
    run, evaluator, samples, test_windows = job.run, job.evaluator, outcome.samples, job.test_windows
    own = outcome.samples_for(args.target)
    with phase("finalists", f"best of {len(own)} samples at sparsity {args.target:g}"):
        scores, chosen = choose(
            args,
            evaluator.units,
            job.starts[args.target],
            outcome.policy,
            outcome.archives[args.target],
            evaluator.measure_final,
        )
    policies = {**reference_policies(args.target, evaluator), "chosen": chosen}
    results = measure_policies(evaluator, policies, test_windows, args.batch_size)
    about = {
        "target_sparsity": args.target,
        "text": args.text,
        "test_text": args.test_text or args.text,
        "seq_len": evaluator.windows.shape[1],
        "test_seq_len": test_windows.shape[1],
        "windows": {purpose: len(x) for purpose, x in evaluator.texts.items()} | {"test": len(test_windows)},
        "ridge": args.ridge,
        "evaluations": len(samples),
        "evaluations_for_target": len(own),
        "seconds": outcome.seconds,
    }
    run.write_json("best.json", about | best_policy(evaluator, results, scores, chosen))
    draw(args, job, outcome, policies, results)
    failure = None
    if args.save_model:
        try:
            results = replace(results, saved=save_and_measure(args, job, results))
            run.write_json("best.json", about | best_policy(evaluator, results, scores, chosen))
        except (ValueError, OSError, RuntimeError) as error:  # a full disk, or no memory for a second model
            failure = f"the model could not be written and read back: {error}"
        else:
            failure = difference(job, results)
    console.print(results_table(results, evaluator.texts | {"test": test_windows}))
    part_of_them = "" if len(own) == len(samples) else f", {len(own)} of them at sparsity {args.target:g}"
    summary = f"{len(samples)} evaluations in {outcome.seconds:.0f} s{part_of_them}; files in {escape(str(run.path))}"
    console.print(summary, highlight=False)
    if failure is not None:
        errors.print("[bold red]error:[/]", escape(" ".join(failure.split())))
    return 0 if failure is None else 1


def draw(args: Args, job: Job, outcome: Outcome, policies: Mapping[str, Allocation], results: Measured) -> None:
    """Leaves the plots, and the outcome in TensorBoard."""
    run, evaluator = job.run, job.evaluator
    rates = {label(name): policy.rates for name, policy in policies.items() if name != "dense"}
    rewards = {
        label(name): measure_reward(evaluator, policy.kept, args.samples, args.reward)[0]
        for name, policy in policies.items()
        if name != "dense"
    }
    samples = outcome.samples_for(args.target)
    retention = retention_plot(evaluator.units, rates)
    run.save_plot("learning_curve", learning_curve_plot(samples, rewards, args.reward))
    run.save_plot("retention", retention)
    where = "final" if len(outcome.archives) == 1 else f"final_{run.path.name}"
    made = windows_made({**evaluator.texts, "test": job.test_windows})  # shorter and fewer than asked for, maybe
    log_final(outcome.policy, asdict(args) | made, results, retention, where)


def save_and_measure(args: Args, job: Job, results: Measured) -> PolicyResult:
    """Writes the chosen model to model/, and measures what a user reads back from there."""
    evaluator, chosen = job.evaluator, results.final["chosen"]
    folder = job.run.path / "model"
    facts = CardFacts(
        base_model=Path(args.model).name if Path(args.model).exists() else args.model,
        target_sparsity=args.target,
        dense_ppl=results.plain["dense"].test_ppl,
        pruned_ppl=chosen.test_ppl,
        protocol="{} test text, {} windows of {} tokens".format(
            Path(args.test_text or args.text).name, *job.test_windows.shape
        ),
        calibration_asked=results.asked,
    )
    if folder.exists():  # of the same run, which was resumed
        shutil.rmtree(folder)
    calibration = evaluator.final_calibration(chosen.kept)
    with phase("writing", f"{chosen.params / 1e6:.1f} M parameters to {folder}"):
        save_pruned(evaluator.prunable, chosen.kept, folder, job.tokenizer, calibration, facts)
    with phase("reading back", str(folder)):
        # One device that the dense model did not fit on has no room for another beside it.
        model = load_pruned(folder, device="cpu" if args.device_map else str(evaluator.prunable.device))
        return replace(
            chosen,
            search_ppl=perplexity(model, evaluator.chosen_on, args.batch_size),
            test_ppl=perplexity(model, job.test_windows, args.batch_size),
        )


def difference(job: Job, results: Measured) -> str | None:
    """How the model in model/ differs from the one in the table; None if it does not."""
    measured, saved = results.final["chosen"], results.saved
    if saved is None:
        return None
    folder, tolerance = job.run.path / "model", rounding_tolerance(job.evaluator.prunable.model.dtype)
    try:
        require_same_model(saved.search_ppl, measured.search_ppl, tolerance, f"{folder}, on search text")
        require_same_model(saved.test_ppl, measured.test_ppl, tolerance, f"{folder}, on test text")
    except ValueError as error:
        return str(error)
    return None


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[Sample], None]]:
    """Shows how far the search is, by its samples: a bar on a terminal, in a log file a line every half a minute."""
    if not console.is_terminal:
        with phase("search", f"{total} evaluations"):
            yield log_progress(total)
        return
    with Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"), console=console
    ) as progress:
        task = progress.add_task("search", total=total)

        def show(sample: Sample) -> None:
            progress.update(task, advance=1, description=progress_text(sample))

        yield show


def log_progress(total: int, pause: float = 30.0) -> Callable[[Sample], None]:
    """Logs a sample now and then: the last one, and others if so many seconds have passed since the line before."""
    told = time.monotonic()

    def show(sample: Sample) -> None:
        nonlocal told
        if sample.step + 1 == total or time.monotonic() - told >= pause:
            told = time.monotonic()
            logger.info("search: %d of %d  %s", sample.step + 1, total, progress_text(sample))

    return show


def progress_text(sample: Sample) -> str:
    """Reward, perplexity and σ of a sample, and on how many windows it was measured: others do not compare."""
    perplexities = f"PPL {sample.ppl:.2f} (dense {sample.dense_ppl:.2f})"
    windows = f"{sample.n_samples} window{'s' if sample.n_samples > 1 else ''}"
    return f"reward {sample.reward:.3f}  {perplexities} on {windows}  σ {sample.target_sparsity:.3f}"


if __name__ == "__main__":
    sys.exit(main())
