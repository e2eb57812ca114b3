"""Zero-shot accuracy of a dense or pruned model on BoolQ, PIQA, HellaSwag, WinoGrande, ARC and OpenBookQA, by lm-eval.

    python evaluate/zero_shot.py smollm2-135m                                  # data sets from the hub
    python evaluate/zero_shot.py runs/<name>/model --data-dir path/to/files --limit 200

The average is taken as in the paper: acc of BoolQ and WinoGrande, acc_norm of the others.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ffprune_env.cli.consoles import wide_console
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import require_folder_of
from ffprune_env.evaluators.zero_shot import DEFAULT_BATCH_SIZE, Show, ZeroShot, check_settings, score_tasks
from ffprune_env.evaluators.zero_shot_tasks import TASKS, open_tasks
from ffprune_env.lm.models import load_model
from ffprune_env.run.folder import strict_json

console = wide_console()


@dataclass(frozen=True)
class Args:
    """Settings of the measurement; every field is a flag."""

    model: tyro.conf.Positional[str]
    """as --model of train/ppo.py, or model/ of a run"""
    data_dir: Path | None = None
    """folder with a file <task>.jsonl for each task, in the columns of the hub's data set; by default the data come
    from the hub"""
    tasks: tuple[str, ...] = TASKS
    """what to measure"""
    limit: int | None = None
    """questions per task, from the first; None asks all"""
    batch_size: int = DEFAULT_BATCH_SIZE
    """token sequences per forward pass; the default was the fastest of 1, 4, 8 and 16 on one CPU core in bfloat16; a
    GPU takes more"""
    dtype: str = "auto"
    """as for train/ppo.py"""
    device: str = "auto"
    """as for train/ppo.py"""
    trust_remote_code: bool = False
    """as for train/ppo.py"""
    json: Path | None = None
    """file to write the result to"""


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__)
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        check_settings(args.limit, args.batch_size)
        require_folder_of("--json", args.json)
        with open_tasks(args.tasks, args.data_dir) as tasks:  # before the model, which may take minutes
            model, tokenizer = load_model(args.model, args.dtype, args.device, args.trust_remote_code)
            with progress_bar() as show:
                result = score_tasks(model, tokenizer, tasks, args.limit, args.batch_size, show)
        about = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
        if args.json is not None:
            args.json.write_text(strict_json(report(args, about, result), indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        errors.print("[bold red]error:[/]", escape(str(error)))
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted; what was measured is above")
        return 130
    console.print(table("{}, {dtype} on {device}".format(args.model, **about), result))
    return 0


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


def report(args: Args, about: dict[str, str], result: ZeroShot) -> dict[str, object]:
    """What the JSON file holds."""
    settings = {**asdict(args), "data_dir": None if args.data_dir is None else str(args.data_dir), **about}
    measured = {"tasks": asdict(result)["tasks"], "average": result.average, "average_stderr": result.average_stderr}
    return {"lm_eval": metadata.version("lm_eval"), **{k: v for k, v in settings.items() if k != "json"}, **measured}


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
