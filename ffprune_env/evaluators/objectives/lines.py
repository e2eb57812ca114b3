"""Lines of tokens of different lengths, and what a model loses on some tokens of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ffprune_env.lm.batches import in_fitting_batches
from ffprune_env.lm.cost import count_forward
from ffprune_env.lm.head import decoder_outputs, head_of, look_again, own_logits
from ffprune_env.lm.loss import token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Line:
    """Tokens that are read, and tokens that are to be predicted.

    Attributes:
        tokens: int64 [T], what is read.
        rows: int64 [k], after which of them something is to be predicted.
        targets: int64 [k], what.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor


def answer_line(context: str, answer: str, tokenizer: PreTrainedTokenizerBase, longest: int) -> Line:
    """What is read, and what is answered, as lm-eval makes tokens of it.

    Args:
        context: what is read.
        answer: what is to be predicted.
        tokenizer: the model's.
        longest: tokens that the model takes; what is longer is cut from the left.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:  # a space belongs to the word behind it
        context, answer = context[:-spaces], context[-spaces:] + answer
    before = tokenizer.encode(context) if context else [_first_token(tokenizer)]
    whole = tokenizer.encode(context + answer) if context else before + tokenizer.encode(answer)
    tokens = torch.tensor(whole[-(longest + 1) :], dtype=torch.int64)
    n = min(max(1, len(whole) - len(before)), len(tokens) - 1)
    return Line(tokens[:-1], torch.arange(len(tokens) - 1 - n, len(tokens) - 1), tokens[-n:])


def conversation_line(tokens: torch.Tensor, answers: torch.Tensor) -> Line:
    """A conversation, of which the answers are to be predicted: int64 [T] and bool [T]."""
    rows = answers[1:].nonzero()[:, 0]
    return Line(tokens[:-1], rows, tokens[1:][rows])


@torch.inference_mode()
def line_losses(model: PreTrainedModel, lines: Sequence[Line], batch_size: int | None = None) -> list[float]:
    """Sum of the losses of what is to be predicted, in nats, of every line.

    Lines that read the same are read once. Shorter ones are filled up behind their ends, where nothing sees it.

    Args:
        model: a causal language model, dense or pruned.
        lines: at least one.
        batch_size: lines per forward pass, fewer where memory runs out; None chooses.
    """
    alike: dict[bytes, list[int]] = defaultdict(list)
    for i, line in enumerate(lines):
        alike[line.tokens.numpy().tobytes()].append(i)
    read = sorted(alike.values(), key=lambda same: -len(lines[same[0]].tokens))
    longest = len(lines[read[0][0]].tokens)

    def lose(size: int) -> list[float]:
        losses = [0.0] * len(lines)
        for part in _parts(read, [len(lines[same[0]].tokens) for same in read], size * longest):
            batch = torch.nn.utils.rnn.pad_sequence([lines[same[0]].tokens for same in part], batch_first=True)
            asked = [(place, i) for place, same in enumerate(part) for i in same]
            where = torch.cat([torch.full_like(lines[i].rows, place) for place, i in asked])
            rows = torch.cat([lines[i].rows for _, i in asked])
            targets = torch.cat([lines[i].targets for _, i in asked])
            found = _losses_at(model, batch, where, rows, targets).double().cpu()
            for (_, i), own in zip(asked, torch.split(found, [len(lines[i].rows) for _, i in asked]), strict=True):
                losses[i] = float(own.sum())
        return losses

    look_again(model)
    shape = torch.empty(len(read), longest, dtype=torch.int64, device="meta")
    return in_fitting_batches(model, shape, batch_size, lose)


def _losses_at(
    model: PreTrainedModel, batch: torch.Tensor, where: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Losses of some tokens: int64 [B, T], and int64 [k] each of lines, rows and targets, to float32 [k]."""
    if head_of(model).route == "whole":
        logits = own_logits(model, batch)
        count_forward(batch)
        chosen = logits[where.to(logits.device), rows.to(logits.device)].float()
        return torch.nn.functional.cross_entropy(chosen, targets.to(chosen.device), reduction="none")
    hidden = decoder_outputs(model, batch)
    count_forward(batch)
    chosen = hidden[where.to(hidden.device), rows.to(hidden.device)]
    return token_losses(model, chosen, targets.to(hidden.device))


def _parts(read: Sequence[list[int]], lengths: Sequence[int], tokens: int) -> Iterator[list[list[int]]]:
    """Lines of about one length, the longest first, that take no more than so many tokens together."""
    start = 0
    while start < len(read):
        end = start + max(1, tokens // max(1, lengths[start]))
        yield list(read[start:end])
        start = end


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a text that begins with nothing is predicted from."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return 0 if first is None else int(first)
