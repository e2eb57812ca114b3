"""The frontier as rows of words, for a terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    f"decode: {JOB.new_tokens} tokens of one sequence, on one thread of the CPU, in CPU time; ×: as a multiple of the "
    f"dense model as {BASE.upper()}, which took turns with it, the median of all rounds.",
    f"prefill: a prompt of {JOB.prompt} tokens, in the same way.",
    "the best of: no other file here has both a lower perplexity and a smaller size, or a faster decode.",
)


def rows_of(points: Sequence[FilePoint]) -> list[tuple[str, ...]]:
    """A row for each file, in words.

    Args:
        points: the files; of the dense model, that as f16 may be missing or have no finite perplexity, and then no loss
            is told.
    """
    base = next((x.ppl for x in points if x.model == DENSE and x.kind == BASE and math.isfinite(x.ppl)), None)
    small, fast = best_of(points, lambda x: x.size), best_of(points, lambda x: -x.decode.ratio)
    rows: list[tuple[str, ...]] = []
    for x in points:
        best = [name for name, those in (("size", small), ("speed", fast)) if (x.model, x.kind) in those]
        rows.append(
            (
                DENSE if x.model == DENSE else "pruned",
                f"{x.sparsity:g}",
                x.kind.upper(),
                f"{x.size / 2**20:.1f}",
                f"{x.ppl:.2f}",
                "" if base is None else f"{x.ppl / base - 1:+.1%}",
                f"{x.decode.tokens:.1f}",
                f"{x.decode.ratio:.2f}",
                f"{x.prefill.ratio:.2f}",
                ", ".join(best),
            )
        )
    return rows
