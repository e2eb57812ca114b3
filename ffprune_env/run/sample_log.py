"""``samples.jsonl``: what a search has measured, written as it goes, and all that is needed to go on with it."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ffprune_env.budget.arrays import IntArray
from ffprune_env.evaluators.protocol import Windows
from ffprune_env.lm.one_line import one_line
from ffprune_env.lm.replacing import replacing
from ffprune_env.run.strict_json import as_measured, strict_json
from ffprune_env.search.samples import Sample

logger = logging.getLogger(__name__)

# Everything that a search with the same seed must find again.
_REPEATED = tuple(field.name for field in dataclasses.fields(Sample) if field.name != "seconds")


class DifferentSearchError(ValueError):
    """A run cannot go on: its samples are not what its settings lead to here."""


class Remembering(Protocol):
    """An evaluator that can be told what it measured before."""

    def remember(
        self, kept: IntArray, n_samples: Windows, ppl: float, kl: float | None = None, dense_ppl: float | None = None
    ) -> None:
        """From now on answers these questions so."""
        ...


class SampleLog:
    """Keeps every sample of a search; a search that was cut off is made again up to there, from what was kept.

    A search is a function of its seed and of what its evaluator answers. So nothing of the policy, of its optimizer
    or of any random state has to be saved for a search to go on: an evaluator that remembers the samples answers the
    first part of the search at once, and the log checks that the policy asks what it asked before.

    Args:
        path: the file; it may not exist yet. A last line that was cut off is dropped, and said. Beside it may lie
            ``measured.jsonl``: what workers measured of a rollout before all of it was known, and what was measured to
            compare the samples with.

    Attributes:
        recorded: the samples that were in the file.

    Raises:
        ValueError: another line is not a sample, or the steps do not count up from 0.
        OSError: a file cannot be read or mended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ahead = path.with_name("measured.jsonl")
        self.recorded, whole = read_samples(path)
        if whole is not None:
            with replacing(path) as scratch:
                scratch.write_bytes(whole)

    def remind(self, evaluator: Remembering) -> None:
        """Tells the evaluator what was measured."""
        for line in self.ahead.read_bytes().splitlines() if self.ahead.exists() else []:
            try:
                kept, n_samples, ppl, kl = json.loads(line)
                windows = tuple(n_samples) if isinstance(n_samples, list) else n_samples
                evaluator.remember(np.array(kept), windows, ppl, kl)
            except (ValueError, TypeError):  # cut off: it is measured again
                continue
        for sample in self.recorded:
            windows = sample.windows or sample.n_samples
            evaluator.remember(sample.kept, windows, sample.ppl, sample.kl, sample.dense_ppl)

    def note(self, kept: IntArray, n_samples: Windows, ppl: float, kl: float | None) -> None:
        """Keeps an answer whose sample is still to come, or that is no sample's.

        One that is not finite is measured again after a kill.
        """
        if math.isfinite(ppl) and (kl is None or math.isfinite(kl)):
            with self.ahead.open("a", encoding="utf-8") as file:
                file.write(json.dumps([kept.tolist(), n_samples, ppl, kl]) + "\n")

    def __call__(self, sample: Sample) -> None:
        """Adds a sample, or checks that it is the one that was recorded.

        Raises:
            DifferentSearchError: it is another one.
            OSError: it cannot be written.
        """
        if sample.step >= len(self.recorded):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(strict_json(dataclasses.asdict(sample)) + "\n")
            return
        before = self.recorded[sample.step]
        for name in _REPEATED:
            if not np.array_equal(getattr(before, name), getattr(sample, name)):
                raise DifferentSearchError(
                    f"{self.path} is not of this search: {name} of step {sample.step} is {getattr(before, name)} there "
                    f"and {getattr(sample, name)} now. It was edited, or made by other versions or another number of "
                    f"threads (see manifest.json): start a new run"
                )

    @property
    def seconds(self) -> float:
        """What the recorded samples took."""
        return sum(sample.seconds for sample in self.recorded)


def read_samples(path: Path) -> tuple[list[Sample], bytes | None]:
    """The samples of a file, which is left as it is: another process may be writing it.

    Args:
        path: the file; it may not exist. A last line that was cut off is left out, which is logged.

    Returns:
        The samples, and the file without its last line where that was cut off, else None.

    Raises:
        ValueError: another line is not a sample, or the steps do not count up from 0.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return [], None
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    samples = []
    lines = whole.splitlines()
    for i, line in enumerate(lines):
        try:
            sample = _as_sample(json.loads(line))
            if sample.step != i:
                raise ValueError(f"step {sample.step} where {i} is due")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if i < len(lines) - 1:
                raise ValueError(f"line {i + 1} of {path} is not sample {i} of a search: {one_line(error)}") from error
            whole = b"".join(line + b"\n" for line in lines[:i])
        else:
            samples.append(sample)
    if len(whole) == len(content):
        return samples, None
    logger.warning("the last line of %s is broken, as a run leaves it that is cut off; it is dropped", path)
    return samples, whole


def _as_sample(line: dict[str, Any]) -> Sample:
    line = as_measured(line)
    arrays = {"scores": np.float64, "kept": np.int64, "rates": np.float64}
    for name, dtype in arrays.items():
        line[name] = np.array(line[name], dtype=dtype)
    if line.get("windows") is not None:  # earlier versions did not have any
        line["windows"] = tuple(line["windows"])
    sample = Sample(**line)
    for name in ("step", "n_samples"):
        if not isinstance(getattr(sample, name), int):
            raise ValueError(f"{name} is {getattr(sample, name)!r}, an integer is needed")
    for name in ("ppl", "dense_ppl", "reward", "seconds", "target_sparsity", "sparsity"):
        if not isinstance(getattr(sample, name), float):
            raise ValueError(f"{name} is {getattr(sample, name)!r}, a number is needed")
    return sample
