"""Methods against each other on one model: the paper's tables as one command.

    python evaluate/compare.py --text valid.txt --test-text test.txt --sparsity 0.2 0.3 --seeds 3
    python evaluate/compare.py --text valid.txt --test-text test.txt --sparsity 0.2 0.3 --ablation
    python evaluate/compare.py --text valid.txt --test-text test.txt --sparsity 0.1 0.2 0.3 0.4 --start none

Every method answers the same problem with the same ranking, texts, calibration and budget of tokens, and its answer is
measured on test text; `policy` is one search for all sparsities, with the budgets of all together. What is finished is
kept in --out, one file per cell: the same command goes on where it stopped, and another one adds cells to what is
there; reports are of the command they end. Ctrl-C reports what there is so far.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ffprune_env.cli.consoles import fail, say, start_logging, wide_console
from ffprune_env.cli.flag_groups import ContestFlags, ModelFlags, QuestionFlags, RepeatFlags, TextFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.comparison.cells import Cell, ComparisonFolder
from ffprune_env.comparison.contest import (
    REBUILDERS,
    Subject,
    ask,
    ask_final,
    rebuild_and_measure,
    search_and_measure,
    with_room,
)
from ffprune_env.comparison.plan import ANSWERING, Key, named_methods, plan, read_cell
from ffprune_env.comparison.report.ablation import ablation_table
from ffprune_env.comparison.report.files import write_reports
from ffprune_env.comparison.report.tables import comparison_table, overview_table
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.evaluators.zero_shot import score_tasks
from ffprune_env.evaluators.zero_shot_tasks import digest_of_files, open_tasks
from ffprune_env.lm.identity import (
    ChangedError,
    identity_of_model,
    identity_of_texts,
    identity_of_versions,
    text_names,
)
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.pruning.stored_order import ORDER, order_as_json
from ffprune_env.run.provenance import machine_facts, provenance
from ffprune_env.search.settings import TargetSettings
from ffprune_env.texts.window_plan import counts, windows_made

logger = logging.getLogger("ffprune")
console = wide_console()


@dataclass(frozen=True)
class Args(ModelFlags, TextFlags, EvaluatorSettings, TargetSettings, RepeatFlags, ContestFlags, QuestionFlags):
    """Settings of a comparison; every field is a flag, most of them of the groups that scripts share."""

    out: Path = Path("runs/comparison")
    """folder of cells and reports; one folder, one model and one set of texts"""
    ablation: bool = False
    """compare ppo with itself instead, one part changed at a time; its reports are called ablation"""
    zero_shot: bool = False
    """ask the final models of every method, with its first seed, the seven zero-shot tasks"""

    def require_allowed(self) -> None:
        """Raises ValueError for settings that no model is needed to refuse."""
        EvaluatorSettings.require_allowed(self)
        self.require_windows()
        named_methods(self.methods, self.ablation, self.targets)
        if self.ablation and self.methods:
            raise ValueError("--ablation names its methods itself: leave out --methods")
        if self.ablation and self.reward_model == "cut":
            raise ValueError("--ablation compares the two rewards itself: leave out --reward-model cut")
        if self.ablation and self.start != "own":
            raise ValueError(f"--ablation names the starts itself: leave out --start {self.start}")
        if self.patience is not None:
            raise ValueError("every search of a comparison has the same budget: leave out --patience")
        if self.eval_every != 0:
            raise ValueError("no search of a comparison is shown in TensorBoard: leave out --eval-every")
        for flag, value in (
            ("--seeds", self.seeds),
            ("--evaluations", self.budget),
            ("--final-windows", self.final_windows),
            ("--curve-windows", self.curve_windows),
            ("--limit", self.limit),
        ):
            require_in_range(flag, value, 1)
        if not self.targets or not all(0 < sparsity < 1 for sparsity in self.targets):
            got = " ".join(map(str, self.targets)) or "none"
            raise ValueError(f"--sparsity takes numbers between 0 and 1, got {got}")

    def cells(self) -> list[Key]:
        """All that is to be measured."""
        return list(plan(named_methods(self.methods, self.ablation, self.targets), self.targets, self.seeds))

    def shared(self) -> dict[str, Any]:
        """What all cells of a folder have in common."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_SHARED}


# Every method has so much, and every model is asked so many questions, unless the user says otherwise.
DEFAULTS = {"evaluations": 96, "limit": 200}
# What perplexities do not depend on.
_NOT_SHARED = (
    "out", "sparsity", "methods", "ablation", "seeds", "factor_storage", "device", "device_map", "max_memory",
    "zero_shot", "data_dir", "limit", "trust_remote_code",
)  # fmt: skip


def main() -> int:
    """Fills the folder, prints the tables and writes the reports; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console)
    code = 0
    try:
        args.require_allowed()
        args.require_texts()
        folder = ComparisonFolder(args.out, args.shared())
        try:
            with ExitStack() as stack:
                tasks = stack.enter_context(open_tasks(data_dir=args.data_dir)) if args.zero_shot else None
                code = fill(args, folder, tasks)
        except KeyboardInterrupt:
            say("interrupted; what was finished is kept and reported")
            code = 130
        except ChangedError:  # a table of what was measured before would look like one of what there is now
            raise
        except (ValueError, OSError, RuntimeError) as error:
            code = fail(error, 2)
        report(args, folder)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    return code


@dataclass(frozen=True)
class Loaded:
    """The model and the texts that cells are measured with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: dict[str, torch.Tensor]


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
    keys = args.cells()
    found = [read_cell(folder, key, args.targets) for key in keys]
    adds = folder.dense is None or any(
        cell is None or is_unasked(cell, key.seed, tasks) for key, cell in zip(keys, found, strict=True)
    )
    folder.require_same_identity(identity_of_versions(), adds=adds)
    loaded = load(args, folder)
    if not adds:
        logger.info("all is measured already")
        return 0
    subject = prepare(args, folder, tasks, loaded)
    with subject.evaluator.sharing_dense_pass():
        return 1 if measure_missing(args, folder, subject, tasks) else 0


def measure_missing(args: Args, folder: ComparisonFolder, subject: Subject, tasks: Mapping[str, Any] | None) -> int:
    """Measures cell after cell what the folder lacks; returns how many methods could not do what they were asked."""
    failures = 0
    for key in args.cells():
        cell = read_cell(folder, key, args.targets)
        unasked = is_unasked(cell, key.seed, tasks)
        if cell is not None and not unasked:
            continue
        logger.info("%s ...", key.title)
        try:
            if key.method in REBUILDERS:
                measured, model = rebuild_and_measure(subject, key.method, key.sparsity)
                cell = keep(folder, key, measured) if cell is None else cell
                if unasked:
                    folder.add(ask(subject, cell, model))
                del model
            else:
                method = ANSWERING[key.method]
                if cell is None:
                    ask_method = partial(search_and_measure, subject, key.method, method)
                    measured = with_room(subject, partial(ask_method, key.sparsity, key.seed, args.budget))
                    cell = keep(folder, key, measured)
                if unasked:
                    folder.add(with_room(subject, partial(ask_final, subject, cell, method)))
        except ChangedError:  # another process has begun to fill the folder with something else: nothing will fit
            raise
        except (ValueError, RuntimeError) as error:  # one method that cannot do it is no reason to lose the others
            failures += 1
            fail(f"{key.title}: {error}", 1)
    return failures


def keep(folder: ComparisonFolder, key: Key, cell: Cell) -> Cell:
    """Keeps a cell, and says what it holds."""
    folder.add(cell)
    final = cell.test_ppl if cell.calibrated_test_ppl is None else cell.calibrated_test_ppl
    logger.info("%s: test PPL %.2f, in the end %.2f; %.0f s", key.title, cell.test_ppl, final, cell.seconds)
    return cell


def questions(args: Args) -> dict[str, Any]:
    """What zero-shot accuracies depend on."""
    data = None if args.data_dir is None else digest_of_files(args.data_dir)
    return {"data": data, "limit": args.limit, "lm_eval": metadata.version("lm_eval")}


def load(args: Args, folder: ComparisonFolder) -> Loaded:
    """Loads model and texts; ChangedError if the folder was filled with others."""
    model, tokenizer = args.load()
    folder.require_same_identity(identity_of_model(model), args.model)
    planned, test = args.load_texts(model, tokenizer, args)
    texts = {**planned, "test": test}
    names = text_names(args.text, args.test_text, texts, args.calibration_text)
    folder.require_same_identity(identity_of_texts(texts), args.model, names)
    return Loaded(model, tokenizer, texts)


def prepare(args: Args, folder: ComparisonFolder, tasks: Mapping[str, Any] | None, loaded: Loaded) -> Subject:
    """Ranks the model, or takes the ranking of before, and calibrates it; measures of the dense one what is missing."""
    model, tokenizer = loaded.model, loaded.tokenizer
    order = folder.order(model)
    looked_at = {purpose: windows for purpose, windows in loaded.texts.items() if purpose != "test"}
    evaluator = build_evaluator(model, tokenizer, args.text, args, order, looked_at)
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
        texts["test"],
        args.batch_size,
        None if tasks is None else lambda asked: score_tasks(asked, tokenizer, tasks, args.limit),
        targets=args.targets,
        start=args.start,
    )
    facts = {**machine_facts(model), "windows": counts(loaded.texts)}
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
    found = (read_cell(folder, key, args.targets) for key in args.cells())
    cells = [cell for cell in found if cell is not None]
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
    for sparsity in args.targets:
        if any(cell.target_sparsity == sparsity for cell in cells):
            console.print(comparison_table(comparison, sparsity))
    if (overview := overview_table(comparison)) is not None:
        console.print(overview)
    if args.ablation:
        console.print(ablation_table(comparison))
    name = write_reports(comparison, args.out, args.ablation)
    console.print(f"{len(cells)} cells; reports in {escape(str(args.out))}/{name}.html, .md and .json", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
