"""The seven tasks as lm-eval defines them, with the data sets of the hub or files in their place."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task  # type: ignore[import-untyped]
import yaml
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

from ffprune_env.lm.hub import is_offline, require_hub

# lm-eval's own config of every task, below lm_eval/tasks, and the columns that it reads.
_SOURCES = {
    "boolq": ("super_glue/boolq/default.yaml", ("passage", "question", "label")),
    "piqa": ("piqa/piqa.yaml", ("goal", "sol1", "sol2", "label")),
    "hellaswag": ("hellaswag/hellaswag.yaml", ("activity_label", "ctx_a", "ctx_b", "endings", "label")),
    "winogrande": ("winogrande/default.yaml", ("sentence", "option1", "option2", "answer")),
    "arc_easy": ("arc/arc_easy.yaml", ("question", "choices", "answerKey")),
    "arc_challenge": ("arc/arc_challenge.yaml", ("question", "choices", "answerKey")),
    "openbookqa": ("openbookqa/openbookqa.yaml", ("question_stem", "choices", "answerKey")),
}
_CONFIGS = Path(lm_eval.api.task.__file__).parents[1] / "tasks"
#: lm-eval's names of the tasks, in the order of the paper's tables.
TASKS = tuple(_SOURCES)


@contextmanager
def open_tasks(tasks: Sequence[str] = TASKS, data_dir: str | Path | None = None) -> Iterator[dict[str, Any]]:
    """Loads tasks, for any number of models to be measured on inside the context.

    Args:
        tasks: names among :data:`TASKS`.
        data_dir: folder with a file ``<task>.jsonl`` for each, in the columns of the hub's data set; None takes
            lm-eval's own data sets from the hub, or from the local cache.

    Yields:
        lm-eval's task objects by name.

    Raises:
        ValueError: unknown task, or a file of other data.
        OSError: a file is missing, or the hub is needed and out of reach.
    """
    unknown = [name for name in tasks if name not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"unknown tasks {', '.join(unknown) or '(none given)'}; allowed are {', '.join(TASKS)}")
    folder = None if data_dir is None else Path(data_dir)
    if folder is not None:
        _require_files(folder, tasks)
    with tempfile.TemporaryDirectory(prefix="ffprune-") as scratch:
        with quiet_lm_eval():
            # Without its defaults, which take long to index, lm-eval loads a task by the path of its config.
            manager = TaskManager(include_defaults=False)
            opened = {
                name: _hub_task(manager, name) if folder is None else _local_task(manager, name, folder, Path(scratch))
                for name in tasks
            }
        yield opened


def config_file(name: str) -> Path:
    """The file of a task's config, in lm-eval's format.

    Args:
        name: its path, from here or below lm-eval's own tasks (``commonsense_qa/default.yaml``).

    Raises:
        OSError: there is none at either place.
    """
    for path in (Path(name), _CONFIGS / name):
        if path.is_file():
            return path.absolute()
    raise OSError(f"there is no task config {name}, neither here nor in {_CONFIGS}")


def load_configured(name: str) -> dict[str, Any]:
    """lm-eval's task objects, by name, of a config that may be anybody's; it says where its data are.

    Args:
        name: see :func:`config_file`.

    Raises:
        ValueError: the file is no config of tasks, or its data cannot be read, here or from the hub.
        OSError: there is no such file.
    """
    path = config_file(name)
    with quiet_lm_eval(), _in_one_line(f"{path} cannot be loaded as a task of lm-eval"):
        loaded: dict[str, Any] = TaskManager(include_defaults=False).load([str(path)])["tasks"]
    return loaded


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Raises ValueError, which says ``what`` and why in one line, for anything that goes wrong inside."""
    try:
        yield
    except Exception as error:  # configs and data can be wrong in as many ways as there are libraries that read them
        raise ValueError(f"{what}: {' '.join(str(error.__cause__ or error).split())}") from error


def digest_of_files(folder: Path) -> str:
    """Digest of the questions of a folder, which may change where it lies.

    Args:
        folder: with a file ``<task>.jsonl`` for each of :data:`TASKS`.
    """
    digest = hashlib.sha256()
    for name in TASKS:
        digest.update(f"{name}\0{hashlib.sha256((folder / f'{name}.jsonl').read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()[:32]


def _require_files(folder: Path, tasks: Sequence[str]) -> None:
    there = [name for name in TASKS if (folder / f"{name}.jsonl").is_file()]
    for name in tasks:
        if name not in there:
            raise OSError(f"{folder / name}.jsonl is missing; tasks with a file there: {', '.join(there) or 'none'}")


def _local_task(manager: Any, name: str, folder: Path, scratch: Path) -> Any:
    """lm-eval's task with a local file in place of its data set; its config and the cache go to the scratch folder."""
    file = folder.absolute() / f"{name}.jsonl"
    config = {
        "include": str(_CONFIGS / _SOURCES[name][0]),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(scratch)},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
    }
    path = scratch / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with _in_one_line(f"{file} cannot be read as {name}"):
        with file.open(encoding="utf-8") as lines:
            row = json.loads(lines.readline())
        missing = [column for column in _SOURCES[name][1] if column not in row]
        if missing:  # lm-eval would take the name of a column that is not there for an answer
            raise ValueError(f"its first line has no {', '.join(missing)}")
        return manager.load([str(path)])["tasks"][name]


def _hub_task(manager: Any, name: str) -> Any:
    choice = "--data-dir (data_dir), a folder of <task>.jsonl files"
    if not is_offline():
        require_hub(f"the data of {name}", choice)
    try:
        return manager.load([str(_CONFIGS / _SOURCES[name][0])])["tasks"][name]
    except (OSError, ValueError):
        require_hub(f"the data of {name}, which is not in the local cache,", choice)
        raise


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silences what lm-eval and datasets tell of every step; errors still arrive as exceptions."""
    loggers = {logging.getLogger("lm_eval"): logging.ERROR, logging.getLogger("datasets"): logging.CRITICAL}
    levels = {noisy: noisy.level for noisy in loggers}
    bars, bar = not datasets.are_progress_bars_disabled(), lm_eval.api.task.tqdm
    for noisy, level in loggers.items():
        noisy.setLevel(level)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = partial(bar, disable=True)  # no setting of lm-eval's reaches this one
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        if bars:
            datasets.enable_progress_bars()
        for noisy, level in levels.items():
            noisy.setLevel(level)
