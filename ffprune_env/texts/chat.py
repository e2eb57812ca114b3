"""Conversations as a tokenizer's chat template has them, and which of their tokens are answers."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.texts.files import kind_of, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ANSWERS = "assistant"
_KINDS = (".json", ".jsonl")

#: A conversation: its tokens, and whether each belongs to an answer.
Conversation = tuple[torch.Tensor, torch.Tensor]


def is_chat(path: str | Path) -> bool:
    """Whether a file holds conversations: objects with a field ``messages``, in .json or .jsonl.

    Args:
        path: a file; of one that cannot be read as such it is not said why.
    """
    file = Path(path)
    if not file.is_file() or kind_of(file) not in _KINDS:
        return False
    try:
        records = read_records(file)
    except ValueError:
        return False
    return bool(records) and isinstance(records[0], dict) and "messages" in records[0]


def read_chat(path: str | Path, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> list[Conversation]:
    """Reads conversations, cut after so many tokens; those without an answer within that are left out, which is logged.

    What the template puts behind an answer, such as the mark of its end, belongs to it: the model has to learn to stop.

    Args:
        path: .json or .jsonl, also packed by gzip; every object has ``messages``, a list of objects with ``role`` and
            ``content``, as everywhere.
        tokenizer: the model's, with a chat template.
        seq_len: the most tokens of a conversation.

    Returns:
        For each, int64 [T], and bool [T]: which of its tokens are answers.

    Raises:
        ValueError: the tokenizer has no template, or one that changes what was said before; or a row is no
            conversation.
        OSError: the file cannot be read.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"{path} holds conversations, and the tokenizer has no chat template: give plain text")
    if not tokenizer.is_fast:
        raise ValueError(f"{path} holds conversations, and the tokenizer does not say where its tokens begin")
    found, left_out = [], 0
    for row, record in enumerate(read_records(Path(path)), start=1):
        tokens, answers = _conversation(f"{path}, row {row},", record, tokenizer)
        tokens, answers = tokens[:seq_len], answers[:seq_len]
        if bool(answers[1:].any()):
            found.append((tokens, answers))
        else:
            left_out += 1
    if left_out:
        logger.warning("%s: %d conversations have no answer within %d tokens: left out", path, left_out, seq_len)
    if not found:
        raise ValueError(f"{path} holds no conversation with an answer within {seq_len} tokens: give longer windows")
    return found


def _conversation(where: str, record: Any, tokenizer: PreTrainedTokenizerBase) -> Conversation:
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise ValueError(
            f"{where} is {reprlib.repr(record)}: messages with role and content are needed, all of them strings"
        )
    whole = _rendered(where, messages, tokenizer)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = torch.tensor([start for start, _ in encoded["offset_mapping"]], dtype=torch.int64)
    answers = torch.zeros(len(starts), dtype=torch.bool)
    for i, message in enumerate(messages):
        if message["role"] != _ANSWERS:
            continue
        if not i:
            raise ValueError(f"{where} begins with an answer: somebody must have asked")
        before = _rendered(where, messages[:i], tokenizer, add_generation_prompt=True)
        after = _rendered(where, messages[: i + 1], tokenizer)
        if not (whole.startswith(after) and after.startswith(before)):
            raise ValueError(
                f"{where} is changed by the chat template where it goes on: give conversations with one answer each"
            )
        answers |= (starts >= len(before)) & (starts < len(after))
    return torch.tensor(encoded["input_ids"], dtype=torch.int64), answers


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))


def _rendered(
    where: str, messages: Sequence[Any], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template raises what it likes
        raise ValueError(f"{where} does not fit the chat template: {' '.join(str(error).split())}") from error
    return str(text)
