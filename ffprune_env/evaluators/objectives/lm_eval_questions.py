"""Questions of lm-eval's multiple-choice tasks, as its own code words them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffprune_env.evaluators.objectives.questions import Question
from ffprune_env.evaluators.zero_shot_tasks import load_configured, open_tasks

#: How a task is named whose config is in a file.
CONFIG = ".yaml"


def lm_eval_questions(tasks: Sequence[str], data_dir: Path | None) -> dict[str, list[Question]]:
    """The questions of some tasks, by task.

    Args:
        tasks: names; see :func:`~ffprune_env.evaluators.zero_shot_tasks.open_tasks`, as for ``data_dir``. One that ends
            with ``.yaml`` is the config of any multiple-choice task, in lm-eval's format, which says where its data
            are: see :func:`~ffprune_env.evaluators.zero_shot_tasks.config_file`.
        data_dir: folder of ``<task>.jsonl``.

    Raises:
        ValueError: an unknown task, one without choices or answers, one with examples before its questions, two of one
            name, or a file of other data.
        OSError: a file is missing, or the hub is needed and out of reach.
    """
    found: dict[str, list[Question]] = {}

    def add(name: str, task: Any) -> None:
        if name in found:
            raise ValueError(f"two of the tasks {', '.join(tasks)} are called {name}: leave one out, or rename it")
        found[name] = questions_of(name, task)

    if known := [name for name in tasks if not name.endswith(CONFIG)]:
        with open_tasks(known, data_dir) as opened:
            for name, task in opened.items():
                add(name, task)
    for config in (name for name in tasks if name.endswith(CONFIG)):
        for name, task in load_configured(config).items():
            add(name, task)
    return found


def questions_of(name: str, task: Any) -> list[Question]:
    """The questions of one task of lm-eval, in its order.

    Args:
        name: of the task, for messages.
        task: lm-eval's object.

    Raises:
        ValueError: it has no choices, or a question has no right one.
    """
    if getattr(task, "OUTPUT_TYPE", "") != "multiple_choice":
        raise ValueError(f"task {name} has no choices: only multiple-choice tasks can be rewarded")
    if task.config.num_fewshot:
        raise ValueError(f"task {name} shows {task.config.num_fewshot} examples before a question: rewards have none")
    return [_question(name, task, doc) for doc in task.eval_docs]


def asked_of(task: Any, doc: Any) -> str:
    """What a question says, whatever its choices are."""
    context = task.doc_to_text(doc)
    if task.multiple_input:  # the choices are in the context, and what is read here is which of them is right
        return " ".join([*map(str, task.doc_to_choice(doc)), str(task.doc_to_target(doc))])
    return str(context)


def _question(name: str, task: Any, doc: Any) -> Question:
    choices, space = task.doc_to_choice(doc), task.config.target_delimiter
    context = task.fewshot_context(doc, 0)  # with what the task says before every question
    if task.multiple_input:
        behind = f"{space}{task.doc_to_target(doc)}"
        lines, answer = [(read, behind) for read in context], task.doc_to_text(doc)
    else:
        lines, answer = [(context, f"{space}{choice}") for choice in choices], task.doc_to_target(doc)
    if isinstance(answer, str):
        answer = choices.index(answer) if answer in choices else int(answer) if answer.isdigit() else -1
    if not isinstance(answer, int) or not 0 <= answer < len(lines) or len(lines) < 2:
        raise ValueError(f"task {name} has a question without a right answer: {asked_of(task, doc)[:80]!r}")
    return Question(asked_of(task, doc), tuple(lines), answer)
