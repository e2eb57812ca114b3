"""Every causal family of the installed transformers, random and tiny: measured, pruned and written right, or refused.

    python evaluate/families.py                             # all of them
    python evaluate/families.py --families llama gemma3     # some
    python evaluate/families.py --markdown docs/models.md   # the table as a file

A model of each family is made from its default configuration with all sizes small. Five things must hold: the dense
perplexity is that of the model's own logits; putting heads and channels in another order changes nothing; a pruned
model computes what the dense one does with the same heads and channels masked; and what is written computes what was
measured, generates the same, and can be pruned again. Whatever does not hold must be refused by the library, in one
line that says why. Anything else is a failure, and the exit code is 1.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
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
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import require_folder_of
from ffprune_env.export.trial import Outcome, examine
from ffprune_env.lm.replacing import replacing

_MOST_BYTES = 24 * 2**30


@dataclass(frozen=True)
class Args:
    """What is tried; every field is a flag."""

    families: list[str] = field(default_factory=list)
    """model types to try; none means all"""
    markdown: Path | None = None
    """file to write the table to, as Markdown"""
    timeout: float = 120
    """seconds that a family may take"""


def main() -> int:
    """Tries the families and prints the table; returns the exit code."""
    args = read_flags(Args, __doc__)
    try:
        require_folder_of("--markdown", args.markdown)
    except OSError as error:
        return fail(error, 2)
    unknown = [name for name in args.families if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if unknown:
        return fail(f"transformers {transformers.__version__} has no causal family {unknown[0]!r}", 2)
    torch.set_num_threads(1)  # before a process is forked
    names = args.families or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    outcomes = [in_a_process(name, args.timeout) for name in track(names, "families", console=errors(), transient=True)]
    console = Console(soft_wrap=True)
    table = Table(title=f"causal families of transformers {transformers.__version__}, random and tiny")
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for outcome in outcomes:
        table.add_row(*map(escape, cells(outcome)), style="red" if outcome.fault else None)
    console.print(table)
    faults = [outcome for outcome in outcomes if outcome.fault]
    searched, measured = (sum(getattr(x, name) for x in outcomes) for name in ("searched", "measured"))
    console.print(
        f"{len(outcomes)} families: {measured} measured, {searched} pruned, {len(faults)} neither right nor refused"
    )
    if args.markdown is not None:
        with replacing(args.markdown) as scratch:
            scratch.write_text(markdown(outcomes), encoding="utf-8")
    return 1 if faults else 0


# What else can be done with a family that can be written: a title, and whether it was.
_SUPPORT: tuple[tuple[str, Callable[[Outcome], bool]], ...] = (
    ("transformers", lambda outcome: outcome.written),
    ("generation", lambda outcome: outcome.generates),
    ("pruned again", lambda outcome: outcome.again),
)
_COLUMNS = ("family", "perplexity", "search", "written", "generation", "pruned again", "why not")


def cells(outcome: Outcome) -> list[str]:
    """A row of the table."""
    done = (outcome.measured, outcome.searched, outcome.written, outcome.generates, outcome.again)
    return [outcome.family, *map(yes, done), f"FAULT: {outcome.fault}" if outcome.fault else outcome.reason]


def yes(done: bool) -> str:
    """A cell that says whether something is so."""
    return "yes" if done else "no"


def table_lines(titles: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *escaped)]


def markdown(outcomes: list[Outcome]) -> str:
    """The tables as a file: the families that can be written, then all."""
    short = [[x.family, *(yes(has(x)) for _, has in _SUPPORT)] for x in outcomes if x.written]
    return "\n".join(
        [
            "# Models",
            "",
            f"Every causal family of transformers {transformers.__version__}, as a tiny model with random weights: "
            "measured and pruned right, or refused in one line. Printed by",
            "",
            "    python evaluate/families.py --markdown docs/models.md",
            "",
            "*perplexity*: equal to that of the model's own logits. *search*: ranking changes nothing, and the pruned "
            "model computes what the dense one does with the same heads and channels masked. *written*: what "
            "was written computes what was measured, read by ffprune and by the code in its folder alone. "
            "*generation*: that code writes what the pruned model in memory writes, greedily with a dynamic cache, a "
            "static one and none, padded on the left, and by beams. *pruned again*: the folder can be pruned further, "
            "and written.",
            "",
            "## Families that pruned models are written of",
            "",
            *table_lines(["family", *(title for title, _ in _SUPPORT)], short),
            "",
            "## All families",
            "",
            *table_lines([*_COLUMNS], [cells(outcome) for outcome in outcomes]),
            "",
        ]
    )


def in_a_process(family: str, timeout: float) -> Outcome:
    """Tries a family in a process of its own, which may take so many seconds and a bounded piece of memory."""
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe(duplex=False)
    process = forked.Process(target=_answer, args=(family, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(timeout):
            outcome: Outcome = ours.recv()
            return outcome
        return Outcome(family, fault=f"no answer in {timeout:g} s")
    except EOFError:
        process.join()
        return Outcome(family, fault=f"its process died with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _answer(family: str, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("ffprune_env").setLevel(logging.CRITICAL)
    pipe.send(examine(family))
    pipe.close()


if __name__ == "__main__":
    sys.exit(main())
