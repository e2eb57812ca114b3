"""A teacher on disk: the dense model's most probable tokens, computed once, so that it need not stay in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ffprune_env.lm.identity import identity_of_model
from ffprune_env.lm.loss import hidden_chunks
from ffprune_env.lm.phases import phase
from ffprune_env.lm.replacing import replacing
from ffprune_env.recovery.passages import Passage, PassageData, collate, digest_of
from ffprune_env.recovery.soft_targets import TopRows, WholeRows, top_rows
from ffprune_env.recovery.teacher import DenseTeacher, TeacherOutput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Where a recovery keeps its teacher, in its own folder.
FOLDER = "teacher"
_LOG_P, _INDICES, _FACTS = "log_p.npy", "indices.npy", "teacher.json"


class StoredTeacher:
    """Log-probabilities that :func:`store_teacher` wrote; they are read from the files as they are needed.

    Args:
        folder: where they are.
        passages: what they are of, in the same order.

    Raises:
        ValueError: they are of other text, or damaged.
    """

    def __init__(self, folder: Path, passages: Sequence[Passage]) -> None:
        facts = _facts(folder)
        if facts.get("text") != digest_of(passages):
            raise ValueError(f"{folder} holds what the dense model says of other text: remove it")
        self._log_p, self._indices = (np.load(folder / name, mmap_mode="r") for name in (_LOG_P, _INDICES))
        self._starts = [0, *accumulate(passage.scored for passage in passages)]
        self.k, self._vocabulary = int(facts["k"]), int(facts["vocabulary"])

    @property
    def vocabulary(self) -> int:
        """Tokens that there are probabilities of."""
        return self._vocabulary

    def teach(self, batch: dict[str, torch.Tensor], layers: bool = False) -> TeacherOutput:
        """What it says of a batch; see :class:`~ffprune_env.recovery.teacher.Teacher`."""
        if layers:
            raise ValueError("hidden states are not kept on disk")
        where = [slice(self._starts[i], self._starts[i + 1]) for i in batch["index"].tolist()]
        log_p, indices = (
            torch.from_numpy(np.concatenate([stored[part] for part in where]))
            for stored in (self._log_p, self._indices)
        )
        device = batch["labels"].device
        return TeacherOutput(_StoredRows(log_p.to(device), indices.to(device, torch.int64)))


@dataclass(frozen=True, eq=False)
class _StoredRows:
    log_p: torch.Tensor
    indices: torch.Tensor

    def part(self, start: int, stop: int) -> TopRows:
        log_p = self.log_p[start:stop]
        return TopRows(log_p[:, :-1], self.indices[start:stop], log_p[:, -1])


def store_teacher(dense: PreTrainedModel, passages: Sequence[Passage], k: int, folder: Path) -> StoredTeacher:
    """Lets the dense model say what it expects behind every token that counts, and keeps the k most probable.

    8 bytes a token and probability. What is there already of the same model and text is taken as it is.

    Args:
        dense: the dense model.
        passages: all that is trained on, and held out.
        k: probabilities per token.
        folder: where to; what is of another model, text or k there is replaced.
    """
    facts = {"k": k, "text": digest_of(passages), "model": identity_of_model(dense)}
    if {name: value for name, value in _facts(folder).items() if name != "vocabulary"} != facts:
        _remove(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as scratch:
            scratch.mkdir()
            _write(DenseTeacher(dense), passages, k, scratch, facts)
    return StoredTeacher(folder, passages)


@torch.no_grad()
def _write(teacher: DenseTeacher, passages: Sequence[Passage], k: int, folder: Path, facts: dict[str, Any]) -> None:
    rows, width = sum(passage.scored for passage in passages), min(k, teacher.vocabulary)
    options: dict[str, Any] = {"mode": "w+"}
    log_p = np.lib.format.open_memmap(folder / _LOG_P, dtype=np.float32, shape=(rows, width + 1), **options)
    indices = np.lib.format.open_memmap(folder / _INDICES, dtype=np.int32, shape=(rows, width), **options)
    data, place = PassageData(passages), 0
    with phase("teacher", f"{rows} tokens, the {width} most probable next ones of each", len(passages)) as advance:
        for i in range(len(passages)):
            batch = collate([data[i]])
            said, n = teacher.teach(batch), passages[i].scored
            for start in range(0, n, _at_once(teacher, n)):
                stop = min(start + _at_once(teacher, n), n)
                whole = said.rows.part(start, stop)
                assert isinstance(whole, WholeRows)  # the dense model has all of them
                top = top_rows(whole.log_p, k)
                both = torch.cat([top.log_p, top.log_rest[:, None]], dim=1)
                log_p[place + start : place + stop] = both.float().cpu().numpy()
                indices[place + start : place + stop] = top.indices.to("cpu", torch.int32).numpy()
            place += n
            advance()
    log_p.flush()
    indices.flush()
    content = json.dumps({**facts, "vocabulary": teacher.vocabulary})
    (folder / _FACTS).write_text(content, encoding="utf-8")


def _at_once(teacher: DenseTeacher, n: int) -> int:
    return len(hidden_chunks(teacher.model, torch.empty(n))[0])


def _facts(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{folder / _FACTS} is damaged: remove {folder}") from error
    return found if isinstance(found, dict) else {}


def _remove(folder: Path) -> None:
    for name in (_LOG_P, _INDICES, _FACTS):
        (folder / name).unlink(missing_ok=True)
