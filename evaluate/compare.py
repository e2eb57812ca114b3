"""Methods against each other on one model: the paper's tables as one command.

    python evaluate/compare.py --text valid.txt --test-text test.txt --sparsity 0.2 0.3 --seeds 3
    python evaluate/compare.py --text valid.txt --test-text test.txt --sparsity 0.2 0.3 --ablation

Every method answers the same problem with the same ranking, texts, calibration and budget of tokens, and its answer is
measured on test text. What is finished is kept in --out, one file per cell: the same command goes on where it stopped,
and another one adds cells to what is there; reports are of the command they end. Ctrl-C reports what there is so far.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ffprune_env.cli.consoles import wide_console
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import require_in_range
from ffprune_env.comparison.cells import Cell, ComparisonFolder
from ffprune_env.comparison.contest import REBUILDERS, Subject, ask, ask_final, rebuild_and_measure, search_and_measure
from ffprune_env.comparison.report.ablation import ablation_markdown, ablation_table
from ffprune_env.comparison.report.page import comparison_page
from ffprune_env.comparison.report.tables import comparison_markdown, comparison_table
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.zero_shot import score_tasks
from ffprune_env.evaluators.zero_shot_tasks import digest_of_files, open_tasks
from ffprune_env.lm.identity import (
    ChangedError,
    identity_of_model,
    identity_of_texts,
    identity_of_versions,
    text_names,
)
from ffprune_env.lm.models import load_model
from ffprune_env.methods.ablations import ABLATIONS
from ffprune_env.methods.registry import METHODS, settings_of
from ffprune_env.pruning.calibration import Storage
from ffprune_env.pruning.stored_order import ORDER, order_as_json
from ffprune_env.run.folder import provenance, strict_json
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import counts, load_planned_windows, windows_made
from ffprune_env.texts.windows import load_test_windows

logger = logging.getLogger("ffprune")
console = wide_console()
errors = Console(stderr=True, soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Args:
    """Settings of a comparison; every field is a flag."""

    out: Path = Path("runs/comparison")
    """folder of cells and reports; one folder, one model and one set of texts"""
    model: str = "smollm2-135m"
    """as for train/ppo.py"""
    sparsity: tuple[float, ...] = (0.2,)
    """fractions of the prunable parameters to remove"""
    methods: tuple[str, ...] = ()
    """which methods, by name; none stands for all"""
    ablation: bool = False
    """compare ppo with itself instead, one part changed at a time; its reports are called ablation"""
    seeds: int = 1
    """how many times each search is run, with seeds 0, 1, ..."""
    evaluations: int = 96
    """budget of a search, in measurements on all --samples windows; who measures on fewer windows makes more of them"""

    text: str = "python-docs"
    """search and calibration text"""
    test_text: str | None = None
    """test text; by default the test part of --text"""
    seq_len: int = 1024
    """tokens per window of search and calibration text"""
    samples: int = 2
    """windows of search text per evaluation"""
    final_samples: int = 8
    """further windows of search text, for searches that look at their last candidates again; nobody sees them before"""
    calibration_windows: int = 96
    """windows of calibration text, or all there are if those are fewer"""
    curve_windows: int = 16
    """further windows of search text, for damage curves, a part at a time; one that is looked at is paid for as three
    that are measured"""
    test_seq_len: int = 2048
    """tokens per window of test text"""
    test_windows: int | None = 8
    """windows of test text, from its beginning; None takes all. Of fewer than 4 there is no interval"""
    batch_size: int | None = None
    """windows per forward pass; None: by device and window length. Halved where memory runs out"""

    channels_per_group: int = 32
    """FFN channels that are removed at once, as for train/ppo.py"""
    criterion: str = "surgeon"
    """how heads and channels are ranked: surgeon, wanda, fisher, wanda+fisher, or FLAP's wifv"""
    calibrated: bool = True
    """reward the calibrated model"""
    ridge: float = 0.01
    """λ of the calibration"""
    factor_storage: Storage = "device"
    """device, or cpu where the factors of the calibration do not fit beside the model"""
    sequential: bool = True
    """calibrate what every method ends with once more, in sequence"""
    dtype: str = "auto"
    """auto, bfloat16, float16 or float32"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    trust_remote_code: bool = False
    """run Python code that a checkpoint brings along"""

    zero_shot: bool = False
    """ask the final models of every method, with its first seed, the seven zero-shot tasks"""
    data_dir: Path | None = None
    """as for evaluate/zero_shot.py"""
    limit: int | None = 200
    """questions per zero-shot task; None asks all"""


# What perplexities do not depend on.
_NOT_SHARED = (
    "out", "sparsity", "methods", "ablation", "seeds", "factor_storage", "device", "zero_shot", "data_dir", "limit",
    "trust_remote_code",
)  # fmt: skip
_SEARCHED = METHODS | ABLATIONS


def main() -> int:
    """Fills the folder, prints the tables and writes the reports; returns the exit code."""
    args = read_flags(Args, __doc__)
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        check(args)
        shared = {name: value for name, value in asdict(args).items() if name not in _NOT_SHARED}
        folder = ComparisonFolder(args.out, shared)
        code = 0
        try:
            with ExitStack() as stack:
                tasks = stack.enter_context(open_tasks(data_dir=args.data_dir)) if args.zero_shot else None
                code = fill(args, folder, tasks)
        except KeyboardInterrupt:
            errors.print("interrupted; what was finished is kept and reported")
            code = 130
        except ChangedError:  # a table of what was measured before would look like one of what there is now
            raise
        except (ValueError, OSError, RuntimeError) as error:
            errors.print("[bold red]error:[/]", escape(" ".join(str(error).split())))
            code = 2
        report(args, folder)
    except (ValueError, OSError) as error:
        errors.print("[bold red]error:[/]", escape(str(error)))
        return 2
    return code


def check(args: Args) -> None:
    """Raises ValueError for settings that no model is needed to refuse."""
    for name in args.methods:
        if name not in (*_SEARCHED, *REBUILDERS):
            raise ValueError(f"unknown method {name!r}; allowed are {', '.join((*_SEARCHED, *REBUILDERS))}")
    if args.ablation and args.methods:
        raise ValueError("--ablation names its methods itself: leave out --methods")
    if args.ablation and not args.calibrated:
        raise ValueError("--ablation compares the two rewards itself: leave out --no-calibrated")
    for flag, value, least in (
        ("--seeds", args.seeds, 1),
        ("--evaluations", args.evaluations, 1),
        ("--samples", args.samples, 1),
        ("--final-samples", args.final_samples, 1),
        ("--curve-windows", args.curve_windows, 1),
        ("--test-windows", args.test_windows, 1),
        ("--batch-size", args.batch_size, 1),
        ("--limit", args.limit, 1),
        ("--channels-per-group", args.channels_per_group, 1),
    ):
        require_in_range(flag, value, least)
    if not args.sparsity or not all(0 < sparsity < 1 for sparsity in args.sparsity):
        raise ValueError(f"--sparsity takes numbers between 0 and 1, got {' '.join(map(str, args.sparsity)) or 'none'}")


def plan(args: Args) -> Iterator[tuple[str, float, int | None]]:
    """All cells: what needs no search first, then seed after seed, so that a stopped comparison is still a fair one."""
    names = dict.fromkeys(args.methods or (ABLATIONS if args.ablation else (*METHODS, *REBUILDERS)))
    sparsities = dict.fromkeys(args.sparsity)
    searching = [name for name in names if name in _SEARCHED and _SEARCHED[name].searches]
    for sparsity in sparsities:
        yield from ((name, sparsity, None) for name in names if name not in searching)
    for seed in range(args.seeds):
        for sparsity in sparsities:
            yield from ((name, sparsity, seed) for name in searching)


@dataclass(frozen=True)
class Loaded:
    """The model and the texts that cells are measured with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: dict[str, torch.Tensor]


def read_cell(folder: ComparisonFolder, name: str, sparsity: float, seed: int | None) -> Cell | None:
    """A cell that was measured before, with the settings that the method has now; ChangedError if it had others."""
    return folder.cell(name, sparsity, seed, settings_of(_SEARCHED[name]) if name in _SEARCHED else None)


def is_unasked(cell: Cell | None, seed: int | None, tasks: Mapping[str, Any] | None) -> bool:
    """Whether the final model of a cell is still to be asked zero-shot questions; of every method one seed is."""
    return tasks is not None and seed in (None, 0) and (cell is None or cell.zero_shot is None)


def fill(args: Args, folder: ComparisonFolder, tasks: Mapping[str, Any] | None) -> int:
    """Measures what the folder lacks. The model is loaded, and found to be the one of the folder, in any case.

    Returns:
        The exit code: 1 if a method could not do what it was asked.
    """
    if tasks is not None:
        folder.require_same("zero_shot.json", questions(args))
    keys = list(plan(args))
    found = [read_cell(folder, *key) for key in keys]
    adds = folder.dense is None or any(
        cell is None or is_unasked(cell, key[2], tasks) for key, cell in zip(keys, found, strict=True)
    )
    folder.require_same_identity(identity_of_versions(), adds=adds)
    loaded = load(args, folder)
    if not adds:
        logger.info("all is measured already")
        return 0
    subject = prepare(args, folder, tasks, loaded)
    failures = 0
    for name, sparsity, seed in keys:
        cell = read_cell(folder, name, sparsity, seed)
        unasked = is_unasked(cell, seed, tasks)
        if cell is not None and not unasked:
            continue
        title = f"{name} at σ = {sparsity:g}" + ("" if seed is None else f", seed {seed}")
        logger.info("%s ...", title)
        try:
            if name in REBUILDERS:
                measured, model = rebuild_and_measure(subject, name, sparsity)
                cell = keep(folder, title, measured) if cell is None else cell
                if unasked:
                    folder.add(ask(subject, cell, model))
                del model
            else:
                if cell is None:
                    method = _SEARCHED[name]
                    found = search_and_measure(subject, name, method, sparsity, seed, args.evaluations)
                    cell = keep(folder, title, found)
                if unasked:
                    folder.add(ask_final(subject, cell, _SEARCHED[name]))
        except ChangedError:  # another process has begun to fill the folder with something else: nothing will fit
            raise
        except (ValueError, RuntimeError) as error:  # one method that cannot do it is no reason to lose the others
            failures += 1
            errors.print(f"[bold red]{escape(title)}:[/]", escape(" ".join(str(error).split())))
    return 1 if failures else 0


def keep(folder: ComparisonFolder, title: str, cell: Cell) -> Cell:
    """Keeps a cell, and says what it holds."""
    folder.add(cell)
    final = cell.test_ppl if cell.calibrated_test_ppl is None else cell.calibrated_test_ppl
    logger.info("%s: test PPL %.2f, in the end %.2f; %.0f s", title, cell.test_ppl, final, cell.seconds)
    return cell


def questions(args: Args) -> dict[str, Any]:
    """What zero-shot accuracies depend on."""
    data = None if args.data_dir is None else digest_of_files(args.data_dir)
    return {"data": data, "limit": args.limit, "lm_eval": metadata.version("lm_eval")}


def load(args: Args, folder: ComparisonFolder) -> Loaded:
    """Loads model and texts; ChangedError if the folder was filled with others."""
    model, tokenizer = load_model(args.model, args.dtype, args.device, args.trust_remote_code)
    folder.require_same_identity(identity_of_model(model), args.model)
    planned = load_planned_windows(
        model,
        tokenizer,
        args.text,
        seq_len=args.seq_len,
        samples=args.samples,
        final_samples=args.final_samples,
        curve_windows=args.curve_windows,
        calibration_windows=args.calibration_windows,
    )
    test = load_test_windows(args.text, args.test_text, tokenizer, args.test_seq_len, args.test_windows, model=model)
    require_unseen(test, *planned.texts.values())
    texts = {**planned.texts, "test": test}
    names = text_names(args.text, args.test_text, texts)
    folder.require_same_identity(identity_of_texts(texts), args.model, names)
    return Loaded(model, tokenizer, texts)


def prepare(args: Args, folder: ComparisonFolder, tasks: Mapping[str, Any] | None, loaded: Loaded) -> Subject:
    """Ranks the model, or takes the ranking of before, and calibrates it; measures of the dense one what is missing."""
    model, tokenizer = loaded.model, loaded.tokenizer
    order = folder.order(model)
    evaluator = build_evaluator(
        model,
        tokenizer,
        args.text,
        seq_len=args.seq_len,
        n_samples=args.samples,
        final_samples=args.final_samples,
        curve_windows=args.curve_windows,
        calibration_windows=args.calibration_windows,
        channels_per_group=args.channels_per_group,
        criterion=args.criterion,
        batch_size=args.batch_size,
        calibrated=args.calibrated,
        ridge=args.ridge,
        factor_storage=args.factor_storage,
        sequential=args.sequential,
        texts={purpose: windows for purpose, windows in loaded.texts.items() if purpose != "test"},
        order=order,
    )
    if order is None:
        folder.write(ORDER, order_as_json(evaluator.prunable))
    prunable, texts = evaluator.prunable, loaded.texts
    plain = LMEvaluator(
        prunable, evaluator.windows, args.batch_size, evaluator.calibration, False, evaluator.statistics, texts=texts
    )
    subject = Subject(
        evaluator,
        plain,
        texts["calibration"],
        texts["curves"],
        texts["test"],
        args.batch_size,
        None if tasks is None else lambda asked: score_tasks(asked, tokenizer, tasks, args.limit),
    )
    facts = {"device": str(model.device), "dtype": str(model.dtype), "threads": torch.get_num_threads()}
    facts["windows"] = counts(loaded.texts)
    before = folder.manifest
    if before is None:
        folder.write("manifest.json", {**provenance(), **facts, "made": windows_made(loaded.texts)})
    elif before["dtype"] != facts["dtype"]:
        raise ValueError(f"{args.out} was measured in {before['dtype']}, not {facts['dtype']}: give --dtype")
    elif before["device"] != facts["device"] or before["threads"] != facts["threads"]:
        logger.warning("seconds do not compare: what is there was measured on %(device)s, %(threads)d threads", before)
    dense = folder.dense
    if dense is None:
        logger.info("the dense model ...")
        ppl, interval = subject.test(model)
        units = [asdict(unit) for unit in prunable.units]
        dense = {"units": units, "n_params": prunable.n_params, "dense_test_ppl": ppl, "dense_interval": interval}
        folder.dense = dense
    if tasks is not None and dense.get("dense_zero_shot") is None:
        dense["dense_zero_shot"], dense["dense_zero_shot_stderr"] = subject.ask(model)
        folder.write("zero_shot.json", questions(args))
        folder.dense = dense
    return subject


def report(args: Args, folder: ComparisonFolder) -> None:
    """Prints a table per sparsity, and writes the same, with figures, as .json, .md and .html."""
    found = (read_cell(folder, name, sparsity, seed) for name, sparsity, seed in plan(args))
    cells: list[Cell] = [cell for cell in found if cell is not None]
    if not cells:
        console.print("nothing was measured")
        return
    comparison = folder.comparison(cells, {"command": shlex.join(["python", *sys.argv])})
    for cell in cells:
        if cell.fell_back:
            logger.warning(
                "%s at σ = %g%s is calibrated as %s, not %s: it is marked, and not compared with the others",
                cell.method, cell.target_sparsity, "" if cell.seed is None else f", seed {cell.seed},",
                cell.calibration, cell.calibration_asked,
            )  # fmt: skip
    for sparsity in dict.fromkeys(args.sparsity):
        if any(cell.target_sparsity == sparsity for cell in cells):
            console.print(comparison_table(comparison, sparsity))
    markdown, name = comparison_markdown(comparison), "comparison"
    if args.ablation:
        console.print(ablation_table(comparison))
        markdown, name = f"{markdown}\n{ablation_markdown(comparison)}", "ablation"
    contents = {"json": strict_json(asdict(comparison), indent=1), "md": markdown, "html": comparison_page(comparison)}
    for suffix, content in contents.items():
        scratch = args.out / f".writing-{os.getpid()}-{name}.{suffix}"
        scratch.write_text(content, encoding="utf-8")
        scratch.replace(args.out / f"{name}.{suffix}")
    console.print(f"{len(cells)} cells; reports in {escape(str(args.out))}/{name}.html, .md and .json", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
