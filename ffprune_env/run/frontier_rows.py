"""The frontier as rows of words, for a terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ffprune_env.lm.excess import change_text
from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK
from ffprune_env.run.frontier_files import BASE, DENSE, JOB, FilePoint, best_of

#: The columns of :func:`rows_of`.
COLUMNS: tuple[str, ...] = (
    "model",
    "σ",
    "as",
    "MiB",
    "PPL",
    "loss",
    "decode tok/s",
    "decode ×",
    "prefill ×",
    "the best of",
)
#: What to know of them.
NOTES: tuple[str, ...] = (
    f"loss: PPL / PPL of the dense model as {BASE.upper()} - 1; all perplexities are llama.cpp's, on test text.",
    f"decode: {JOB.new_tokens} tokens of one sequence, without its prompt, on one thread of the CPU, in CPU time; ×: "
    f"as a multiple of the dense model as {BASE.upper()}, which took turns with it, the median of all rounds.",
    f"prefill: a prompt of {JOB.prompt} tokens, in the same way.",
    "the best of: no other file here has both a lower perplexity and a smaller size, or a faster decode.",
)


def with_mark(name: str, marked: bool) -> str:
    """The name of a model in a table, marked where it is not calibrated as was asked for."""
    return f"{name} {FELL_BACK_MARK}" if marked else name


def rows_of(points: Sequence[FilePoint], marked: Collection[str] = ()) -> list[tuple[str, ...]]:
    """A row for each file, in words.

    Args:
        points: the files; of the dense model, that as f16 may be missing or have no finite perplexity, and then no loss
            is told.
        marked: the models among them that are not calibrated as was asked for.
    """
    base = next((x.ppl for x in points if x.model == DENSE and x.kind == BASE and math.isfinite(x.ppl)), None)
    small, fast = best_of(points, lambda x: x.size), best_of(points, lambda x: -x.decode.ratio)
    rows: list[tuple[str, ...]] = []
    for x in points:
        best = [name for name, those in (("size", small), ("speed", fast)) if (x.model, x.kind) in those]
        rows.append(
            (
                DENSE if x.model == DENSE else with_mark("pruned", x.model in marked),
                f"{x.sparsity:g}",
                x.kind.upper(),
                f"{x.size / 2**20:.1f}",
                f"{x.ppl:.2f}",
                "" if base is None else change_text(x.ppl, base),
                f"{x.decode.tokens:.1f}",
                f"{x.decode.ratio:.2f}",
                f"{x.prefill.ratio:.2f}",
                ", ".join(best),
            )
        )
    return rows
