"""What a run says of the budget that it was given: asked, predicted, and as it is on disk."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.budget import TIMES, Budget, told
from ffprune_env.budget.measure import Measure
from ffprune_env.export.gguf.kinds import GgufType
from ffprune_env.export.measures import measure_of
from ffprune_env.modeling.config_names import KV_HEADS_KEY
from ffprune_env.serving.latency import served_time, unit_times
from ffprune_env.serving.unit_times import Server

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import PrunableModel

# What two timings of one model may be apart.
_TIMING = 0.05


@dataclass(frozen=True)
class BudgetReport:
    """A budget, and what it counts of the model of this run.

    Attributes:
        budget: as it was asked for.
        measure: of the dense model.
        timed: nanoseconds that a folder takes, where time is what counts.
    """

    budget: Budget
    measure: Measure
    timed: Callable[[Path], int] | None = None

    @property
    def bound(self) -> int:
        """What may stay."""
        return self.budget.bound(self.measure.dense)

    def asked(self) -> str:
        """What is asked for, for a person."""
        dense, bound = (told(amount, self.measure.name) for amount in (self.measure.dense, self.bound))
        return f"budget {self.budget}: at most {bound} of {dense} may stay"

    def content(self, kept: IntArray, written: int | None) -> dict[str, Any]:
        """What ``best.json`` holds of it.

        Args:
            kept: int [N], groups kept per unit.
            written: what the model on disk has; None of one that was not written.
        """
        return {
            "asked": str(self.budget),
            "measure": self.measure.name,
            "at_most": self.bound,
            "dense": self.measure.dense,
            "predicted": self.measure.of(kept),
            "written": written,
        }

    def line(self, kept: IntArray, written: int | None) -> str:
        """The same for a person."""
        amounts = {"dense": self.measure.dense, "at most": self.bound, "predicted": self.measure.of(kept)}
        if written is not None:
            amounts["written"] = written
        name = self.measure.name
        return f"budget {self.budget}: " + ", ".join(f"{word} {told(x, name)}" for word, x in amounts.items())

    def failure(self, written: int | None) -> str | None:
        """One line where the model on disk is more than was asked for; None if it is not."""
        if written is None or written <= self.bound * (1 if self.timed is None else 1 + _TIMING):
            return None
        name = self.measure.name
        return f"--budget {self.budget} is not met: what was written has {told(written, name)} ({written:,})"

    def written(self, folder: Path, gguf: Path) -> int | None:
        """What a model on disk has.

        Args:
            folder: that transformers loads.
            gguf: the file for llama.cpp, whose size counts if it is there.
        """
        if self.timed is not None:
            return self.timed(folder)
        if self.measure.name == "size":
            return sum(file.stat().st_size for file in ([gguf] if gguf.is_file() else folder.glob("*.safetensors")))
        if self.measure.name == "parameters":
            return sum(map(stored_numbers, folder.glob("*.safetensors")))
        return stored_cache(folder) if self.measure.name == "kv" else None


def count_budget(
    budget: Budget,
    prunable: PrunableModel,
    tokenizer: PreTrainedTokenizerBase,
    gguf: GgufType | None,
    server: Server,
) -> BudgetReport:
    """Finds out what a budget counts of a model, and lets its units cost that.

    Args:
        budget: as it was asked for.
        prunable: the ranked model, dense now.
        tokenizer: the model's.
        gguf: the type of the GGUF file that will be written; None: of none.
        server: where time is measured.

    Raises:
        ValueError: it is not known beforehand, or the model cannot be written for the server.
    """
    name = budget.measure
    if name not in TIMES:
        report = BudgetReport(budget, measure_of(prunable, name, tokenizer, gguf))
    else:
        times = unit_times(prunable, tokenizer, server)
        timed = partial(served_time, prunable, tokenizer, server, times, name)
        report = BudgetReport(budget, times.measure(prunable, name), timed)
    prunable.count(report.measure.units)
    return report


def stored_numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def stored_cache(folder: Path) -> int:
    """Bytes of keys and values that a pruned model on disk keeps of a token."""
    config = AutoConfig.from_pretrained(folder)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * sum(getattr(config, KV_HEADS_KEY)) * width * config.dtype.itemsize)
