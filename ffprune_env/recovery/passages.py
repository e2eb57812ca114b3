"""Text to train on: tokens, and for which of them there is a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.lm.identity import identity_of_texts
from ffprune_env.texts.chat import read_chat
from ffprune_env.texts.openings import EVERY
from ffprune_env.texts.spread import middles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The label of a token that is read and not predicted, as everywhere in transformers.
UNSCORED = -100
# A fold of the text that is held out may be small, and what is left must not be.
_MOST_HELD_OUT = 0.25


@dataclass(frozen=True, eq=False)
class Passage:
    """A piece of text that goes through the model as one.

    Attributes:
        tokens: int64 [T].
        labels: int64 [T], the same, and -100 for every token that is not to be predicted.
    """

    tokens: torch.Tensor
    labels: torch.Tensor

    @property
    def scored(self) -> int:
        """Tokens that are predicted: the first one never is."""
        return int((self.labels[1:] != UNSCORED).sum())


def passages_of(windows: torch.Tensor) -> list[Passage]:
    """Windows of plain text, every token of which is predicted but the first.

    Args:
        windows: int64 [n, seq_len].

    Raises:
        ValueError: another shape.
    """
    if windows.ndim != 2 or windows.shape[1] < 2:
        raise ValueError(f"windows must be [n, seq_len ≥ 2], got shape {tuple(windows.shape)}")
    return [Passage(window, window) for window in windows.cpu()]


def load_chat(path: str | Path, tokenizer: PreTrainedTokenizerBase, seq_len: int = 1024) -> list[Passage]:
    """Conversations to train on: the loss is of the answers alone.

    Args:
        path: .json or .jsonl of objects with ``messages``; see :func:`~ffprune_env.texts.chat.read_chat`.
        tokenizer: the model's, with a chat template.
        seq_len: the most tokens of a conversation.
    """
    chats = read_chat(path, tokenizer, seq_len)
    return [Passage(tokens, tokens.masked_fill(~answers, UNSCORED)) for tokens, answers in chats]


def hold_out(passages: Sequence[Passage], wanted: int) -> tuple[list[Passage], list[Passage]]:
    """Takes passages at equal distances away from those that are trained on.

    Args:
        passages: all of them.
        wanted: how many; fewer where that would be more than a quarter, and at least one.

    Returns:
        Those to train on, and those held out; disjoint, and together all.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(passages) < 2:
        raise ValueError(
            f"the text to recover on has {len(passages)} windows, at least 2 are needed, one of them held out: give "
            f"a longer text or shorter windows"
        )
    n = max(1, min(wanted, int(_MOST_HELD_OUT * len(passages))))
    taken = set(middles(len(passages), n))
    left = [passage for i, passage in enumerate(passages) if i not in taken]
    return left, [passages[i] for i in sorted(taken)]


class PassageData(torch.utils.data.Dataset[dict[str, Any]]):
    """Passages, as a loader takes them.

    Args:
        passages: in the order in which a teacher counts them.
        first: the number of the first.
    """

    def __init__(self, passages: Sequence[Passage], first: int = 0) -> None:
        self.passages, self.first = passages, first

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, i: int) -> dict[str, Any]:
        passage = self.passages[i]
        return {"input_ids": passage.tokens, "labels": passage.labels, "index": self.first + i}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Passages as one batch; shorter ones are filled up behind their end, where no token of theirs can see it.

    Args:
        items: of :class:`PassageData`.

    Returns:
        ``input_ids`` and ``labels``, int64 [B, T], and ``index``, int64 [B].
    """

    def stacked(name: str, fill: int) -> torch.Tensor:
        rows = [item[name] for item in items]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

    return {
        "input_ids": stacked("input_ids", 0),
        "labels": stacked("labels", UNSCORED),
        "index": torch.tensor([item["index"] for item in items]),
    }


def begin_alike(passages: Sequence[Passage]) -> bool:
    """Whether all passages begin with the same token: that of a chat template, or BOS."""
    return len({int(passage.tokens[0]) for passage in passages}) == 1


def openings_of_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every 24th pair of tokens in a row of a batch, as passages of their own: how text begins is trained, too.

    Args:
        batch: of :func:`collate`.

    Returns:
        ``input_ids`` and ``labels``, int64 [m, 2]: the second token is to be predicted behind the first alone.
    """
    pairs, rows = batch["input_ids"].unfold(1, 2, 1), scored_rows(batch["labels"])
    found = pairs[rows][::EVERY]
    return {"input_ids": found, "labels": found}


def scored_rows(labels: torch.Tensor) -> torch.Tensor:
    """Which hidden states predict a token that counts: bool [B, T - 1] of int64 [B, T]."""
    return labels[:, 1:] != UNSCORED


def digest_of(passages: Sequence[Passage]) -> str:
    """A digest of tokens, labels and lengths."""
    parts = [torch.tensor([len(passage.tokens) for passage in passages])]
    parts += [x for passage in passages for x in (passage.tokens, passage.labels)]
    return identity_of_texts({"recovery": torch.cat(parts)})["recovery text"]
