"""Zero-shot questions that no search saw: the others are taken out of lm-eval's tasks before they are asked."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffprune_env.evaluators.objectives.build import read_tasks
from ffprune_env.evaluators.objectives.lm_eval_questions import asked_of
from ffprune_env.evaluators.objectives.questions import seen_among
from ffprune_env.evaluators.objectives.reward import RewardMix
from ffprune_env.evaluators.objectives.shares import is_held_out

logger = logging.getLogger(__name__)


def searched_questions(reward: RewardMix, data_dir: str | Path | None) -> list[str]:
    """The questions that a search with a reward may see, as they are asked.

    Args:
        reward: what is rewarded.
        data_dir: folder of ``<task>.jsonl``; None takes the hub's.

    Raises:
        ValueError: bad data.
        OSError: a file is missing, or the hub is needed and out of reach.
    """
    tasks = [read_tasks(term, data_dir) for term in reward.terms if term.kind == "tasks"]
    return [
        x.asked for of_term in tasks for questions in of_term.values() for x in questions if not is_held_out(x.asked)
    ]


def unseen_alone(
    tasks: Mapping[str, Any], reward: RewardMix, data_dir: str | Path | None, held_out: bool = False
) -> str:
    """Takes out of tasks what a search with a reward may see of them: :func:`keep_unseen` of its questions."""
    if not tasks or not (held_out or any(term.kind == "tasks" for term in reward.terms)):
        return ""
    return keep_unseen(tasks, searched_questions(reward, data_dir), held_out)


def keep_unseen(tasks: Mapping[str, Any], seen: Sequence[str], held_out: bool = False) -> str:
    """Takes questions out of lm-eval's tasks, which then ask the others alone.

    Args:
        tasks: what :func:`~ffprune_env.evaluators.zero_shot_tasks.open_tasks` yields; they are changed.
        seen: questions that a search may have seen; those that say the same go.
        held_out: take out, too, the half of all questions that a search with the reward ``tasks`` may see.

    Returns:
        A digest of what was taken out; empty if that is nothing.

    Raises:
        ValueError: nothing is left of a task, or the task does not say where its questions come from.
    """
    if not seen and not held_out:
        return ""
    asked = {name: [asked_of(task, doc) for doc in task.eval_docs] for name, task in tasks.items()}
    every = [*seen, *(x for of_task in asked.values() for x in of_task if held_out and not is_held_out(x))]
    digest = hashlib.sha256()
    for name, task in tasks.items():
        gone = list(seen_among(asked[name], every))
        kept = [i for i, taken in enumerate(gone) if not taken]
        place = task.config.test_split if task.has_test_docs() else task.config.validation_split
        if not kept or len(task.dataset[place]) != len(gone):
            why = "all of its questions were searched on" if not kept else "its questions cannot be told apart"
            raise ValueError(f"{name} cannot be asked: {why}; leave it out")
        task.dataset[place] = task.dataset[place].select(kept)
        digest.update(f"{name}\0{kept}\0".encode())
        logger.info("%s: %d of %d questions that no search saw", name, len(kept), len(gone))
    return digest.hexdigest()[:32]
