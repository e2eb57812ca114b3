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
from typing import Any

from rich.markup import escape

from ffprune_env.cli.consoles import fail, say, start_logging, wide_console
from ffprune_env.cli.flag_groups import CellsFlags, ContestFlags, QuestionFlags, RepeatFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import ModelFlags
from ffprune_env.cli.settings import asked_for
from ffprune_env.cli.text_flags import TextFlags
from ffprune_env.cli.used_flags import by_questions
from ffprune_env.comparison.filling import NOT_SHARED, Filling, fill
from ffprune_env.comparison.folder import ComparisonFolder
from ffprune_env.comparison.measuring import Measuring
from ffprune_env.comparison.plan import Key, named_methods, plan, read_cell
from ffprune_env.comparison.questions import Questions
from ffprune_env.comparison.report.ablation import ablation_table
from ffprune_env.comparison.report.files import write_reports
from ffprune_env.comparison.report.tables import comparison_table, overview_table, rewarded_table
from ffprune_env.evaluators.objectives.unseen import unseen_alone
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.evaluators.zero_shot import score_tasks
from ffprune_env.evaluators.zero_shot_tasks import open_tasks
from ffprune_env.lm.identity import ChangedError
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.search.target_settings import TargetSettings
from ffprune_env.search.unheeded import require_used

logger = logging.getLogger("ffprune")
console = wide_console()


@dataclass(frozen=True)
class Args(
    ModelFlags, TextFlags, EvaluatorSettings, TargetSettings, RepeatFlags, ContestFlags, QuestionFlags, CellsFlags
):
    """Settings of a comparison; every field is a flag, most of them of the groups that scripts share."""

    ablation: bool = False
    """compare ppo with itself instead, one part changed at a time; its reports are called ablation"""
    zero_shot: bool = False
    """ask the final models of every method the seven zero-shot tasks"""
    zero_shot_seeds: int = 1
    """with --zero-shot, of how many seeds of every search the final model is asked"""

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
        if self.ablation and self.reward != "ppl":
            raise ValueError(f"--ablation compares rewards itself: leave out --reward {self.reward}")
        if self.patience is not None:
            raise ValueError("every search of a comparison has the same budget: leave out --patience")
        if self.eval_every != 0:
            raise ValueError("no search of a comparison is shown in TensorBoard: leave out --eval-every")
        for flag, value in (
            ("--seeds", self.seeds),
            ("--zero-shot-seeds", self.zero_shot_seeds),
            ("--evaluations", self.evaluations_each),
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
        own = (*NOT_SHARED, "ablation", "zero_shot", "zero_shot_seeds")
        return {name: value for name, value in asdict(self).items() if name not in own}


# Every method has so much, and every model is asked so many questions, unless the user says otherwise.
DEFAULTS = {"evaluations": 96, "limit": 200}


def main() -> int:
    """Fills the folder, prints the tables and writes the reports; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console)
    code = 0
    try:
        args.require_allowed()
        require_used(asked_for(sys.argv[1:], Args), by_questions(args.zero_shot, args.rewarded))
        args.require_texts()
        folder = ComparisonFolder(args.out, args.shared())
        try:
            with ExitStack() as stack:
                tasks = stack.enter_context(open_tasks(data_dir=args.data_dir)) if args.zero_shot else None
                apart = unseen_alone(tasks or {}, args.rewarded, args.data_dir, args.held_out)
                code = min(1, fill(filling(args, tasks, apart), folder, partial(fail, code=1)))
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


def filling(args: Args, tasks: Mapping[str, Any] | None, apart: str) -> Filling:
    """What the folder is to hold, in the words of the library."""
    questions = None
    if tasks is not None:
        questions = Questions(tasks, args.limit, args.data_dir, score_tasks, apart, args.zero_shot_seeds)
    measuring = Measuring(
        args.model,
        args.text,
        args.test_text,
        args,
        args.load,
        lambda model, tokenizer: args.load_texts(model, tokenizer, args),
        args.targets,
        args.start,
        questions,
    )
    return Filling(measuring, args.cells(), args.evaluations_each)


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
            if (rewarded := rewarded_table(comparison, sparsity)) is not None:
                console.print(rewarded)
    if (overview := overview_table(comparison)) is not None:
        console.print(overview)
    if args.ablation:
        console.print(ablation_table(comparison))
    name = write_reports(comparison, args.out, args.ablation)
    console.print(f"{len(cells)} cells; reports in {escape(str(args.out))}/{name}.html, .md and .json", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
