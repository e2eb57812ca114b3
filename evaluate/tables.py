"""The four tables of the paper, each by one command, the paper's own figures beside those that are measured.

    python evaluate/tables.py --table 2 --models smollm2-135m --text valid.txt --test-text test.txt
    python evaluate/tables.py --table 1 --models llama-7b --text wikitext2
    python evaluate/tables.py --table 4 --models llama-7b llama-2-70b --dry-run

1 is zero-shot accuracy, 2 perplexity over models and sparsities, 3 what calibration and search are worth alone and
together, 4 what the search costs. Flags begin where the paper's own protocol does. Every model has a folder in --out,
with a file per cell, as of evaluate/compare.py: tables share cells, and the same command goes on where it stopped.
--dry-run says what would be loaded, and the tokens, memory and hours that it takes.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from rich.markup import escape

from ffprune_env.cli.consoles import fail, say, start_logging, wide_console
from ffprune_env.cli.flag_groups import CellsFlags, HardwareFlags, QuestionFlags, RepeatFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import PlaceFlags
from ffprune_env.cli.text_flags import TextFlags
from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.filling import NOT_SHARED, Filling, fill
from ffprune_env.comparison.folder import ComparisonFolder
from ffprune_env.comparison.measuring import Measuring
from ffprune_env.comparison.paper_tables.contents import OTHER_TEXT, TABLES, PaperTable
from ffprune_env.comparison.paper_tables.dry_run import assumptions, needs_table, passes_tables
from ffprune_env.comparison.paper_tables.estimate import Protocol
from ffprune_env.comparison.paper_tables.files import write_table
from ffprune_env.comparison.paper_tables.grids import grids_of
from ffprune_env.comparison.paper_tables.measured import Measured
from ffprune_env.comparison.plan import Key, read_cell
from ffprune_env.comparison.questions import Questions
from ffprune_env.comparison.report.tables import terminal_table
from ffprune_env.evaluators.objectives.unseen import unseen_alone
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.evaluators.zero_shot import score_tasks
from ffprune_env.evaluators.zero_shot_tasks import open_tasks
from ffprune_env.lm.batches import release_memory
from ffprune_env.lm.identity import ChangedError
from ffprune_env.lm.model_names import DEFAULT_MODEL
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.search.presets import PRESETS
from ffprune_env.search.target_settings import EvaluationsSettings
from ffprune_env.texts.default_text import text_for
from ffprune_env.texts.windows import require_text, same_text

logger = logging.getLogger("ffprune")
console = wide_console()


@dataclass(frozen=True, kw_only=True)
class Args(
    PlaceFlags, TextFlags, EvaluatorSettings, EvaluationsSettings, RepeatFlags, QuestionFlags, CellsFlags, HardwareFlags
):
    """Settings of a table; every field is a flag, most of them of the groups that scripts share."""

    table: Literal[1, 2, 3, 4]
    """which table"""
    models: tuple[str, ...] = (DEFAULT_MODEL,)
    """the models in it, each a name as --model of train/ppo.py has it"""
    other_text: str = OTHER_TEXT
    """of table 1, the text that Ours (C4) is calibrated on"""
    measure: bool = True
    """measure what is missing; otherwise no model is loaded, and the table is of what there is"""
    dry_run: bool = False
    """print what would be loaded, and tokens, memory and hours, by arithmetic"""

    def settled(self) -> Self:
        """Itself: each of its models has a text of its own."""
        return self

    def require_texts(self) -> None:
        """Raises OSError or ValueError for a text that is not there, that of calibration too."""
        TextFlags.require_texts(self)
        if self.calibration_text is not None:
            require_text(self.calibration_text)

    def for_model(self, model: str, calibration_text: str | None) -> Self:
        """The settings of one model: with the text that goes with it, if none was named."""
        return replace(self, text=text_for(model, self.text), calibration_text=calibration_text)

    def require_two_texts(self) -> None:
        """Raises ValueError where the two rows of table 1 that differ in their calibration text would be the same."""
        for model in self.models if self.table == 1 else ():
            one = self.for_model(model, self.calibration_text)
            if same_text(one.calibration_text or one.text, self.other_text):
                raise ValueError(
                    f"--table 1 shows ours calibrated on two texts, and of {model} both are {self.other_text}: give "
                    "another --other-text, or another --calibration-text"
                )

    def require_allowed(self) -> None:
        """Raises ValueError for settings that no model is needed to refuse."""
        EvaluatorSettings.require_allowed(self)
        self.require_windows()
        self.require_hardware()
        if not self.models:
            raise ValueError(f"--models takes at least one name, such as {DEFAULT_MODEL}")
        if len({folder_name(name) for name in self.models}) < len(set(self.models)):
            raise ValueError(f"two of --models end in the same name, and would share a folder: {' '.join(self.models)}")
        if self.patience is not None:
            raise ValueError("every search of a table has the same budget: leave out --patience")
        if self.eval_every != 0:
            raise ValueError("no search of a table is shown in TensorBoard: leave out --eval-every")
        for flag, value in (
            ("--seeds", self.seeds),
            ("--evaluations", self.evaluations_each),
            ("--final-windows", self.final_windows),
            ("--limit", self.limit),
        ):
            require_in_range(flag, value, 1)

    def shared(self, model: str) -> dict[str, Any]:
        """What all cells of a model's folder have in common, as evaluate/compare.py says it."""
        own = ("table", "models", "other_text", "measure", "dry_run", "gpu_memory", "tflops")
        known = {name: value for name, value in asdict(self).items() if name not in (*NOT_SHARED, *own)}
        return {**known, "model": model, "start": "own"}

    def protocol(self) -> Protocol:
        """How everything is measured, for an estimate."""
        return Protocol(self, self.evaluations_each, self.seeds, self.test_windows, self.test_seq_len, self.limit)


# The paper's own protocol, of which the search itself is part of the method: all test text, one folder for all models.
DEFAULTS = {name: value for name, value in PRESETS["paper"].items() if name in {field.name for field in fields(Args)}}
DEFAULTS |= {"test_windows": None, "out": Path("runs/tables")}


def main() -> int:
    """Fills the folders, prints the table and writes it; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console)
    table, code = TABLES[args.table], 0
    try:
        args.require_allowed()
        args.require_two_texts()
        if args.dry_run:
            return estimate(args, table)
        if args.measure:
            try:
                code = measure(args, table)
            except KeyboardInterrupt:
                say("interrupted; what was finished is kept and reported")
                code = 130
        report(args, table)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    return code


def estimate(args: Args, table: PaperTable) -> int:
    """Prints what the table would take; returns the exit code."""
    protocol, gpu = args.protocol(), (args.gpu_memory, args.tflops)
    needs = needs_table(table, args.models, protocol, *gpu)
    console.print(*passes_tables(table, args.models, protocol), needs)
    console.print(assumptions(protocol, *gpu), highlight=False, style="dim")
    return 0


def measure(args: Args, table: PaperTable) -> int:
    """Measures what is missing, model after model; returns the exit code: that of the worst."""
    codes = [0]
    with ExitStack() as stack:
        tasks = stack.enter_context(open_tasks(data_dir=args.data_dir)) if table.zero_shot else None
        apart = unseen_alone(tasks or {}, args.rewarded, args.data_dir, args.held_out)
        for part in parts(args, table):
            try:
                part.args.require_texts()
                codes.append(min(1, fill(filling(part, tasks, apart), part.folder(), partial(fail, code=1))))
            except ChangedError:  # a table of what was measured before would look like one of what there is now
                raise
            except (ValueError, OSError, RuntimeError) as error:  # one that fails is no reason to lose the others
                codes.append(fail(f"{part.model}: {error}", 2))
            release_memory()
    return max(codes)


@dataclass(frozen=True)
class Part:
    """What one folder holds of a table: a model, calibrated on one text."""

    args: Args
    model: str
    keys: Sequence[Key]
    targets: tuple[float, ...]
    name: str

    def folder(self) -> ComparisonFolder:
        """The folder itself."""
        return ComparisonFolder(self.args.out / self.name, self.args.shared(self.model))

    def comparison(self) -> Comparison | None:
        """All that is there; None without the dense model."""
        folder = self.folder()
        found = [read_cell(folder, key, self.targets) for key in self.keys]
        return None if folder.dense is None else folder.comparison([cell for cell in found if cell is not None], {})


def parts(args: Args, table: PaperTable) -> list[Part]:
    """All folders of a table: of every model one, and another where a row is calibrated on the other text."""
    found = []
    for model in args.models:
        name, one = folder_name(model), args.for_model(model, args.calibration_text)
        found.append(Part(one, model, table.keys(args.seeds), table.sparsities, name))
        if keys := table.keys(args.seeds, other_text=True):
            other = args.for_model(model, args.other_text)
            found.append(Part(other, model, keys, table.sparsities, f"{name}-on-{Path(args.other_text).stem}"))
    return found


def folder_name(model: str) -> str:
    """How the folder of a model is called: by the last word of its name."""
    return Path(model).name


def filling(part: Part, tasks: Mapping[str, Any] | None, apart: str) -> Filling:
    """What a folder is to hold, in the words of the library."""
    args, questions = part.args, None
    if tasks is not None:
        questions = Questions(tasks, args.limit, args.data_dir, score_tasks, apart, args.seeds)
    measuring = Measuring(
        part.model,
        args.text,
        args.test_text,
        args,
        partial(args.load_named, part.model),
        lambda model, tokenizer: args.load_texts(model, tokenizer, args),
        part.targets,
        questions=questions,
    )
    return Filling(measuring, part.keys, args.evaluations_each)


def report(args: Args, table: PaperTable) -> None:
    """Prints the table, and writes it as .json, .md and .html."""
    models = [measured(model, parts(args, table)) for model in args.models]
    if all(one.comparison is None for one in models):
        console.print("nothing was measured")
        return
    for title, grid in grids_of(table, models):
        console.print(terminal_table(grid, escape(title)))
    name = write_table(table, models, args.out, shlex.join(["python", *sys.argv]))
    console.print(f"reports in {escape(str(args.out))}/{name}.html, .md and .json", highlight=False)


def measured(model: str, parts: Sequence[Part]) -> Measured:
    """What there is of one model."""
    first, *others = (part for part in parts if part.model == model)
    made = first.folder().manifest or {}
    other = others[0].comparison() if others else None
    return Measured(model, first.comparison(), other, made.get("seconds_prepared"), first.args.other_text, made)


if __name__ == "__main__":
    sys.exit(main())
