"""From what stands behind ``--reward`` to what measures it: questions and conversations read, split and bundled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.evaluators.objectives.function import FunctionValue, digest_of_function, load_function
from ffprune_env.evaluators.objectives.lines import Line, answer_line, conversation_line
from ffprune_env.evaluators.objectives.mix import Objectives
from ffprune_env.evaluators.objectives.questions import Question, read_questions, seen_among
from ffprune_env.evaluators.objectives.reward import RewardMix, Term
from ffprune_env.evaluators.objectives.shares import Bundles, Counts, split
from ffprune_env.evaluators.objectives.terms import (
    Asked,
    Conversations,
    Margins,
    Objective,
    TextDivergence,
    TextLoss,
)
from ffprune_env.lm.context import context_length
from ffprune_env.texts.chat import read_chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FILES = (".jsonl", ".json")


def require_reward(reward: RewardMix, data_dir: str | Path | None = None) -> None:
    """Refuses a reward whose data or function is not there, before a model is loaded for it.

    Args:
        reward: what is rewarded.
        data_dir: folder of questions.

    Raises:
        ValueError: bad data, or no such function.
        OSError: a file is missing.
    """
    for term in reward.terms:
        if term.kind == "function":
            load_function(term.of)
        if term.kind == "chat" and not Path(term.of).is_file():
            raise OSError(f"--reward {term}: there is no file {term.of}")
        if term.kind == "tasks":
            if _is_file(term.of):
                read_questions(_there(term))
            else:
                _require_tasks(term, data_dir)


def build_objectives(
    reward: RewardMix,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: dict[str, torch.Tensor],
    counts: Counts,
    data_dir: str | Path | None = None,
    batch_size: int | None = None,
    function: Callable[..., Any] | None = None,
) -> Objectives:
    """Reads what a reward is measured on, and shares it out as the windows of text are.

    Args:
        reward: what is rewarded.
        model: whose context questions must fit in.
        tokenizer: its tokenizer.
        texts: windows by place, int64 [n, seq_len]; those that are reported on may be added later.
        counts: how many windows there are by purpose.
        data_dir: folder of ``<task>.jsonl``; None takes the hub's.
        batch_size: at once, at the most; None chooses.
        function: of model and tokenizer, that was given as itself and is all that is rewarded; None looks functions up
            by their names.

    Raises:
        ValueError: bad data, too little of it, or no such function.
        OSError: a file is missing, or the hub is needed and out of reach.
    """
    longest = context_length(model)
    terms: list[Objective] = []
    identity: dict[str, str] = {}
    seen: list[str] = []
    for term in reward.terms:
        if term.kind == "function":
            called = load_function(term.of) if function is None else function
            terms.append(FunctionValue(term.of, called, tokenizer))
            identity[f"function {term.of}"] = digest_of_function(called)
        elif term.kind == "tasks":
            questions = read_tasks(term, data_dir)
            identity[f"questions of {term}"] = _digest(questions)
            sides = {name: split({x.asked: x for x in every}) for name, every in questions.items()}
            mine = [x.asked for search, _ in sides.values() for x in search]
            terms.append(Margins(_bundles(sides, mine + seen, tokenizer, longest, counts), batch_size))
            seen += mine
        elif term.kind == "chat":
            bundles, identity[f"conversations of {term}"] = _conversations(term, tokenizer, counts, longest)
            terms.append(Conversations(bundles, batch_size))
        else:
            terms.append((TextLoss if term.kind == "ppl" else TextDivergence)(texts, batch_size))
    return Objectives(reward, tuple(terms), texts, identity, tuple(seen))


def _bundles(
    sides: Mapping[str, tuple[list[Question], list[Question]]],
    seen: list[str],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    counts: Counts,
) -> dict[str, Bundles[Asked]]:
    """Questions in tokens, by task; one that says what a question of the search says is not reported on."""
    found = {}
    for name, (search, held_out) in sides.items():
        repeated = list(seen_among((x.asked for x in held_out), seen))
        apart = [x for x, again in zip(held_out, repeated, strict=True) if not again]
        made = [_asked(x, tokenizer, longest) for x in search[: _enough(counts)]]
        costs = [sum(len(line.tokens) for line in x.lines) for x in made]
        reported = [_asked(x, tokenizer, longest) for x in apart[: Bundles.REPORTED]]
        found[name] = Bundles(f"tasks {name}", made, reported, costs, counts, len(sides))
    return found


def _enough(counts: Counts) -> int:
    """Questions of a task that no search needs more of: a window of text has room for no more short ones."""
    return (counts.search + counts.finalists + counts.watch + counts.pool) * max(1, counts.tokens // 64)


def _asked(question: Question, tokenizer: PreTrainedTokenizerBase, longest: int) -> Asked:
    lines = tuple(answer_line(context, answer, tokenizer, longest) for context, answer in question.lines)
    return Asked(lines, question.answer)


def read_tasks(term: Term, data_dir: str | Path | None) -> dict[str, list[Question]]:
    """The questions of a term, by task.

    Args:
        term: of the kind ``tasks``.
        data_dir: folder of ``<task>.jsonl``; None takes the hub's.

    Raises:
        ValueError: bad data.
        OSError: a file is missing, or the hub is needed and out of reach.
    """
    if _is_file(term.of):
        return {Path(term.of).name: read_questions(_there(term))}
    from ffprune_env.evaluators.objectives.lm_eval_questions import lm_eval_questions

    names = _require_tasks(term, data_dir)
    return lm_eval_questions(names, None if data_dir is None else Path(data_dir))


def _require_tasks(term: Term, data_dir: str | Path | None) -> list[str]:
    """The tasks that a term names: those of a folder, where it names none."""
    from ffprune_env.evaluators.objectives.lm_eval_questions import CONFIG
    from ffprune_env.evaluators.zero_shot_tasks import TASKS, config_file

    folder = None if data_dir is None else Path(data_dir)
    there = [name for name in TASKS if folder is None or (folder / f"{name}.jsonl").is_file()]
    asked = [name for name in term.of.split(",") if name] or there
    configs = [name for name in asked if name.endswith(CONFIG)]
    for name in configs:
        config_file(name)
    names = [name for name in asked if name not in configs]
    if unknown := [name for name in names if name not in TASKS]:
        raise ValueError(
            f"--reward {term}: unknown tasks {', '.join(unknown)}; allowed are {', '.join(TASKS)}, a .jsonl file of "
            f"your own, or a .yaml file of lm-eval's format"
        )
    if missing := [name for name in names if name not in there]:
        raise OSError(f"--reward {term}: {folder} has no {missing[0]}.jsonl; it has {', '.join(there) or 'none'}")
    if not asked:
        raise OSError(f"--reward {term}: {folder} holds none of {', '.join(f'{name}.jsonl' for name in TASKS)}")
    return list(dict.fromkeys(asked))


def _conversations(
    term: Term, tokenizer: PreTrainedTokenizerBase, counts: Counts, longest: int
) -> tuple[Bundles[Line], str]:
    if not Path(term.of).is_file():
        raise OSError(f"--reward {term}: there is no file {term.of}")
    chats = read_chat(term.of, tokenizer, min(counts.tokens, longest))
    by_text = {repr(tokens.tolist()): conversation_line(tokens, answers) for tokens, answers in chats}
    search, held_out = split(by_text)
    bundles = Bundles(str(term), search, held_out, [len(line.tokens) for line in search], counts)
    return bundles, hashlib.sha256("\0".join(sorted(by_text)).encode()).hexdigest()[:32]


def _digest(questions: Mapping[str, list[Question]]) -> str:
    digest = hashlib.sha256()
    for name, every in questions.items():
        digest.update(f"{name}\0{every!r}\0".encode())
    return digest.hexdigest()[:32]


def _is_file(of: str) -> bool:
    return Path(of).suffix in _FILES


def _there(term: Term) -> Path:
    if not Path(term.of).is_file():
        raise OSError(f"--reward {term}: there is no file {term.of}")
    return Path(term.of)
