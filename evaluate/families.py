"""Every causal family of the installed transformers, random and tiny: measured, pruned and written right, or refused.

    python evaluate/families.py                             # all of them
    python evaluate/families.py --families llama gemma3     # some
    python evaluate/families.py --markdown docs/models.md   # the tables as a file

A model of each family is made from its default configuration with all sizes small. Five things must hold: the dense
perplexity is that of the model's own logits; putting heads and channels in another order changes nothing; a pruned
model computes what the dense one does with the same heads and channels masked; and what is written computes what was
measured, generates the same, and can be pruned again. Whatever does not hold must be refused by the library, in one
line that says why. What can be written is served, too: llama.cpp, in files of several types, and vLLM, where make
vllm has made its environment, must compute what we do. Anything else is a failure, and the exit code is 1.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ffprune_env.cli.consoles import errors, fail
from ffprune_env.cli.flag_groups import VllmFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import require_folder_of
from ffprune_env.export.trial import FaultError, Outcome, examine
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.replacing import replacing
from ffprune_env.serving.backends import backend_of
from ffprune_env.serving.trial import (
    TYPES,
    VLLM_TOLERANCE,
    LlamaCppFinding,
    VllmFinding,
    by_llama_cpp,
    by_vllm,
    write_tiny,
)

_MOST_BYTES = 24 * 2**30


@dataclass(frozen=True)
class Args(VllmFlags):
    """What is tried; every field is a flag."""

    families: list[str] = field(default_factory=list)
    """model types to try; none means all"""
    markdown: Path | None = None
    """file to write the table to, as Markdown"""
    timeout: float = 120
    """seconds that a family may take"""


@dataclass(frozen=True)
class Tried:
    """What became of one family.

    Attributes:
        outcome: measured, pruned and written.
        llama_cpp: what llama.cpp made of it; None where it was not tried.
        vllm: what vLLM made of it; None where it was not tried.
    """

    outcome: Outcome
    llama_cpp: LlamaCppFinding | None = None
    vllm: VllmFinding | None = None

    @property
    def fault(self) -> str:
        """What is wrong; empty if nothing is."""
        if self.vllm is not None and not self.vllm.reason and not self.vllm.same:
            return f"log-probabilities in vLLM are off by {self.vllm.off:.2g} nats"
        return self.outcome.fault


def main() -> int:
    """Tries the families and prints the table; returns the exit code."""
    args = read_flags(Args, __doc__)
    try:
        require_folder_of("--markdown", args.markdown)
        require_in_range("--timeout", args.timeout, 1)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    unknown = [name for name in args.families if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if unknown:
        return fail(f"transformers {transformers.__version__} has no causal family {unknown[0]!r}", 2)
    torch.set_num_threads(1)  # before a process is forked
    names = args.families or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in names}
        families = track(folders.items(), "families", console=errors(), transient=True)
        tried = [in_a_process(name, args.timeout, folder) for name, folder in families]
        written = {x.outcome.family: folders[x.outcome.family] for x in tried if x.outcome.written}
        vllm = backend_of("vllm", Path(args.vllm_python))
        if written and vllm.missing is None:
            with errors().status(f"vLLM: {len(written)} families"):
                found = by_vllm(written, vllm.python)
            tried = [replace(x, vllm=found.get(x.outcome.family)) for x in tried]
    console = Console(soft_wrap=True)
    for title, columns, rows in tables(tried):
        table = Table(title=title)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row), style="red" if "FAULT" in row[-1] else None)
        console.print(table)
    faults = sum(bool(x.fault) for x in tried)
    searched, measured = (sum(getattr(x.outcome, name) for x in tried) for name in ("searched", "measured"))
    console.print(f"{len(tried)} families: {measured} measured, {searched} pruned, {faults} neither right nor refused")
    if args.markdown is not None:
        with replacing(args.markdown) as scratch_file:
            scratch_file.write_text(markdown(tried), encoding="utf-8")
    return 1 if faults else 0


_SERVED = ("family", "transformers", "generation", "pruned again", "vLLM", *TYPES, "why not")
_ALL = ("family", "perplexity", "search", "written", "generation", "pruned again", "why not")


def tables(tried: Sequence[Tried]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, columns and rows of the tables: the families that can be written, then all."""
    served = [served_row(x) for x in tried if x.outcome.written]
    rows = [row_of(x) for x in tried]
    of = f"causal families of transformers {transformers.__version__}, random and tiny"
    return [("Families that pruned models are written of", _SERVED, served), (f"All {of}", _ALL, rows)]


def row_of(tried: Tried) -> list[str]:
    """What could be done with a family."""
    outcome = tried.outcome
    done = (outcome.measured, outcome.searched, outcome.written, outcome.generates, outcome.again)
    return [outcome.family, *map(yes, done), f"FAULT: {tried.fault}" if tried.fault else outcome.reason]


def served_row(tried: Tried) -> list[str]:
    """Where a family that can be written runs."""
    outcome, llama_cpp, vllm = tried.outcome, tried.llama_cpp, tried.vllm
    done = map(yes, (outcome.written, outcome.generates, outcome.again))
    in_vllm = "not tried" if vllm is None else yes(vllm.same)
    if llama_cpp is None:
        off = ["not tried"] * len(TYPES)
    else:
        off = [f"{llama_cpp.off[name]:+.2%}" if name in llama_cpp.off else "no" for name in TYPES]
    reasons = [x.reason for x in (llama_cpp, vllm) if x is not None and x.reason]
    return [outcome.family, *done, in_vllm, *off, f"FAULT: {tried.fault}" if tried.fault else "; ".join(reasons)]


def yes(done: bool) -> str:
    """A cell that says whether something is so."""
    return "yes" if done else "no"


def table_lines(titles: Sequence[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *escaped)]


def markdown(tried: Sequence[Tried]) -> str:
    """The tables as a file."""
    lines = [
        "# Models",
        "",
        f"Every causal family of transformers {transformers.__version__}, as a tiny model with random weights: "
        "measured and pruned right, or refused in one line. Printed by",
        "",
        "    make vllm",
        "    python evaluate/families.py --markdown docs/models.md",
        "",
        "*perplexity*: equal to that of the model's own logits. *search*: ranking changes nothing, and the pruned "
        "model computes what the dense one does with the same heads and channels masked. *written*, *transformers*: "
        "what was written computes what was measured, read by ffprune and by the code in its folder alone. "
        "*generation*: that code writes what the pruned model in memory writes, greedily with a dynamic cache, a "
        "static one and none, padded on the left, and by beams. *pruned again*: the folder can be pruned further, "
        "and written.",
        "",
        f"*vLLM*: tokens and their log-probabilities are ours to {VLLM_TOLERANCE:g}, with layers of several sizes and "
        "heads that share their keys unevenly. *" + "*, *".join(TYPES) + "*: llama.cpp's perplexity by a GGUF file of "
        "that type, against ours in float32, on text that the pruned model wrote itself, where errors cannot cancel. "
        "Random weights are harder to round than trained ones.",
    ]
    for title, columns, rows in tables(tried):
        lines += ["", f"## {title}", "", *table_lines(columns, rows)]
    return "\n".join([*lines, ""])


def in_a_process(family: str, timeout: float, folder: Path) -> Tried:
    """Tries a family in a process of its own, which may take so many seconds and a bounded piece of memory.

    Args:
        family: its model type.
        timeout: seconds.
        folder: where a tiny pruned model of it is left for servers.
    """
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe(duplex=False)
    process = forked.Process(target=_answer, args=(family, folder, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(timeout):
            tried: Tried = ours.recv()
            return tried
        return Tried(Outcome(family, fault=f"no answer in {timeout:g} s"))
    except EOFError:
        process.join()
        return Tried(Outcome(family, fault=f"its process died with exit code {process.exitcode}"))
    finally:
        process.kill()
        process.join()


def _answer(family: str, folder: Path, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("ffprune_env").setLevel(logging.CRITICAL)
    tried = Tried(examine(family))
    if tried.outcome.written:
        tried = _served(tried, folder)
    pipe.send(tried)
    pipe.close()


def _served(tried: Tried, folder: Path) -> Tried:
    """Serves a family in llama.cpp, if that is installed."""
    write_tiny(tried.outcome.family, folder)
    if importlib.util.find_spec("cyllama") is None:
        return tried
    try:
        return replace(tried, llama_cpp=by_llama_cpp(folder))
    except FaultError as fault:
        return replace(tried, outcome=replace(tried.outcome, fault=str(fault)))


if __name__ == "__main__":
    sys.exit(main())
