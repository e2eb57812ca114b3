"""Zero-shot accuracy of a dense or pruned model on BoolQ, PIQA, HellaSwag, WinoGrande, ARC and OpenBookQA, by lm-eval.

    python evaluate/zero_shot.py smollm2-135m                                  # data sets from the hub
    python evaluate/zero_shot.py runs/<name>/model --data-dir path/to/files --limit 200

The average is taken as in the paper: acc of BoolQ and WinoGrande, acc_norm of the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ffprune_env.cli.consoles import fail, say, start_logging, wide_console
from ffprune_env.cli.flag_groups import JsonFlags, QuestionFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import NamedFlags, PlaceFlags
from ffprune_env.evaluators.objectives.reward import parse_reward
from ffprune_env.evaluators.objectives.unseen import unseen_alone
from ffprune_env.evaluators.settings import BatchSettings
from ffprune_env.evaluators.zero_shot import Show, ZeroShot, check_settings, score_tasks
from ffprune_env.evaluators.zero_shot_tasks import TASKS, open_tasks
from ffprune_env.run.config import CONFIG, read_config
from ffprune_env.run.folder import RunFolder

console = wide_console()


@dataclass(frozen=True, kw_only=True)
class Args(NamedFlags, PlaceFlags, QuestionFlags, BatchSettings, JsonFlags):
    """Settings of the measurement; every field is a flag."""

    tasks: tuple[str, ...] = TASKS
    """what to measure"""


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__)
    start_logging(console)
    try:
        check_settings(args.limit, args.batch_size)
        args.require_folder()
        with open_tasks(args.tasks, args.data_dir) as tasks:  # before the model, which may take minutes
            reward = parse_reward(reward_of_run(args.measured, args.held_out))
            unseen_alone(tasks, reward, args.data_dir, args.held_out)
            model, tokenizer = args.load_named(args.measured)
            with progress_bar() as show:
                result = score_tasks(model, tokenizer, tasks, args.limit, args.batch_size, show)
        about = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
        args.write_json(report(args, about, result))
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except RuntimeError as error:  # no memory
        return fail(error, 1)
    except KeyboardInterrupt:
        say("interrupted; what was measured is above")
        return 130
    console.print(table("{}, {dtype} on {device}".format(args.measured, **about), result))
    return 0


def reward_of_run(model: str, held_out: bool = False) -> str:
    """What the search that a model comes from was rewarded with; ``ppl`` of all others.

    Args:
        model: a name, or a folder; that of a run, of a part of one, or of what was allocated elsewhere.
        held_out: whether only questions are asked that no search sees, so that it may be unknown.

    Raises:
        ValueError: the run that allocated the model is not where it was, so that nobody knows what it saw.
    """
    if not Path(model).exists():
        return "ppl"  # a name, whatever lies in the folder that the command is given in
    part = Path(model).resolve().parent
    runs = [part, part.parent]
    told = (RunFolder(part).read_json("best.json") or {}).get("allocated_by")
    if told is not None:
        # A run that was moved with all that is in it has its name still; then what is told is where it was.
        runs = [run for run in (*runs, Path(told)) if run.name == Path(told).name]
    configs = [run / CONFIG for run in runs if (run / CONFIG).is_file()]
    if told is not None and not configs and not held_out:
        raise ValueError(
            f"{part / 'best.json'} says that {told} allocated this model, and there is no {CONFIG} in that: nobody "
            f"knows which questions its search saw; put the run back there, or add --held-out"
        )
    return str(read_config(configs[0]).get("reward", "ppl")) if configs else "ppl"


@contextmanager
def progress_bar() -> Iterator[Show]:
    """A progress bar that starts again with every task."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)

        def show(task: str, done: int, total: int) -> None:
            if progress.tasks[0].description != task:
                progress.reset(bar, description=task)
            progress.update(bar, completed=done, total=total)

        yield show


def report(args: Args, about: Mapping[str, str], result: ZeroShot) -> dict[str, object]:
    """What the JSON file holds."""
    settings = {name: value for name, value in asdict(args).items() if name not in ("measured", "json")}
    settings |= {"data_dir": None if args.data_dir is None else str(args.data_dir), **about}
    measured = {"tasks": asdict(result)["tasks"], "average": result.average, "average_stderr": result.average_stderr}
    return {"lm_eval": metadata.version("lm_eval"), "model": args.measured, **settings, **measured}


def table(title: str, result: ZeroShot) -> Table:
    """A row per task, and their average."""
    rows = Table(title=f"Zero-shot accuracy in percent, ± standard error: {escape(title)}")
    for column in ("task", "questions", "acc", "acc_norm", "averaged"):
        rows.add_column(column, justify="left" if column == "task" else "right")
    for name, x in result.tasks.items():
        accuracies = (cell(x.acc, x.acc_stderr), cell(x.acc_norm, x.acc_norm_stderr))
        rows.add_row(name, str(x.n), *accuracies, f"{x.averaged} {100 * x.score:.2f}")
    rows.add_section()
    count = f"average of {len(result.tasks)}"
    rows.add_row(count, "", "", "", cell(result.average, result.average_stderr))
    return rows


def cell(value: float | None, stderr: float | None) -> str:
    """An accuracy in percent, or nothing."""
    if value is None:
        return ""
    return f"{100 * value:.2f}" if stderr is None else f"{100 * value:.2f} ± {100 * stderr:.2f}"


if __name__ == "__main__":
    sys.exit(main())
