"""Questions with choices, as text: a user's own, one a line; those of lm-eval are in ``lm_eval_questions.py``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffprune_env.texts.files import read_records

_ROW = 'each row is {"question": "...", "choices": ["...", "..."], "answer": 0}'
# So many words in a row are hardly ever the same by chance.
_RUN = 8
_MOST = 0.5


@dataclass(frozen=True)
class Question:
    """A question, as a model reads it.

    Attributes:
        asked: the question alone, which says whether another one is the same.
        lines: (what is read, what is answered) for every choice.
        answer: which of them is right.
    """

    asked: str
    lines: tuple[tuple[str, str], ...]
    answer: int


def read_questions(path: str | Path) -> list[Question]:
    """Reads a user's questions.

    Args:
        path: .json or .jsonl, as texts and conversations are read: every row an object with ``question``, a string;
            ``choices``, at least two different strings; and ``answer``, the index of the right one or that choice
            itself. A choice is put behind the question with a space between them.

    Raises:
        ValueError: a row is not that; the message names it.
        OSError: the file cannot be read.
    """
    file = Path(path)
    try:
        rows = read_records(file)
    except ValueError as error:
        raise ValueError(f"{error}; {_ROW}") from error
    if not rows:
        raise ValueError(f"{file} holds no question: {_ROW}")
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(_question(row))
        except ValueError as error:
            raise ValueError(f"{file}, row {number}: {error}; {_ROW}") from error
    return found


def _question(row: Any) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"an object is needed, got {type(row).__name__}")
    for name in ("question", "choices", "answer"):
        if name not in row:
            raise ValueError(f"there is no {name}")
    asked, choices, answer = row["question"], row["choices"], row["answer"]
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError(f"question must be a string that says something, got {asked!r}")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError(f"choices must be a list of strings that say something, got {choices!r}")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError(f"at least two different choices are needed, got {choices!r}")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"answer must be an index from 0 to {len(choices) - 1} or one of the choices, got {answer!r}")
    asked = asked.rstrip()
    return Question(asked, tuple((asked, f" {choice.strip()}") for choice in choices), answer)


def seen_among(asked: Iterable[str], seen: Iterable[str]) -> Iterator[bool]:
    """Of every question whether it is one of those that were seen, in whatever words around it.

    Args:
        asked: questions.
        seen: others; a question is one of them if more than half of its runs of eight words are in them.
    """
    known = {run for question in seen for run in _runs(question)}
    for question in asked:
        mine = _runs(question)
        yield bool(mine) and sum(run in known for run in mine) > _MOST * len(mine)


def _runs(question: str) -> list[str]:
    """Runs of words, or the whole where it is shorter; what only says that it is a question does not count."""
    words = re.findall(r"\w+", question.casefold())
    if words[:1] == ["question"]:
        words = words[1:]
    if words[-1:] == ["answer"]:
        words = words[:-1]
    return [" ".join(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))] if words else []
