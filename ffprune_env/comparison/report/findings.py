"""What the rows of a report say in words: which method is best, and whether a search beats the heuristics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.rows import Row, code, find, left_out, ppl_text, rows_at, sortable, target_sparsities


def findings(comparison: Comparison) -> list[str]:
    """What the numbers say, one paragraph per sparsity, with names of methods in backticks."""
    return [_finding(comparison, sparsity) for sparsity in target_sparsities(comparison)]


def _finding(comparison: Comparison, sparsity: float) -> str:
    every = rows_at(comparison, sparsity)
    apart = left_out(every)
    rows = [row for row in every if row not in apart]
    sentences = [_best_of(comparison, sparsity, rows), *_search_against_heuristics(rows)] if rows else []
    if apart:
        names = ", ".join(code(row.method) for row in apart)
        sentences.append(
            f"At σ = {sparsity:g} not compared, since not calibrated in sequence as asked for, or not with every seed: "
            f"{names}."
        )
    return " ".join(sentences)


def _best_of(comparison: Comparison, sparsity: float, rows: Sequence[Row]) -> str:
    best, uniform = rows[0], find(rows, "uniform")
    verb = "is best, with" if len(rows) > 1 else "has"
    text = f"At σ = {sparsity:g} {code(best.method)} {verb} a test PPL of {ppl_text(best.final.mean)}"
    text += " (calibrated)" if best.calibrated else " (it rebuilds the weights)" if best.rebuilds else ""
    text += f"; dense has {ppl_text(comparison.dense_test_ppl)}"
    if uniform is not None and uniform is not best:
        text += f", {code('uniform')} {ppl_text(uniform.final.mean)}"
    return f"{text}."


def _search_against_heuristics(rows: Sequence[Row]) -> list[str]:
    """Sentences on the best search and the best heuristic, and on what does better than `ppo` without a search."""
    search = next((row for row in rows if row.search), None)
    heuristic = next((row for row in rows if row.heuristic), None)
    if search is None or heuristic is None:
        return []
    ours, theirs = sortable(search.final.mean), sortable(heuristic.final.mean)
    if ours < theirs:
        text = (
            f"The best search, {_named(search)}, beats the best heuristic, {_named(heuristic)}{_margin(theirs, ours)}"
        )
        worst = sortable(search.final.high)
        text += f", but not with every seed: its worst has {ppl_text(worst)}." if worst >= theirs else "."
    elif ours > theirs:
        text = f"No search beats the best heuristic: {_named(heuristic)} is better than the best search, "
        text += f"{_named(search)}{_margin(ours, theirs)}."
    else:
        text = f"The best search, {_named(search)}, and the best heuristic, {_named(heuristic)}, are equal."
    sentences = [text]
    ppo = find(rows, "ppo")
    better = [row for row in rows if row.heuristic and ppo and sortable(row.final.mean) < sortable(ppo.final.mean)]
    if ppo and better and not (ours > theirs and search is ppo and len(better) == 1):  # else it was just said
        verb = "beats" if len(better) == 1 else "beat"
        sentences.append(f"Without any search {' and '.join(_named(row) for row in better)} {verb} {_named(ppo)}.")
    ahead = [row for row in rows if row.search and ppo and sortable(row.final.mean) < sortable(ppo.final.mean)]
    if ppo and ahead:
        verb = "does" if len(ahead) == 1 else "do"
        names = [_named(row) for row in ahead]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        sentences.append(f"Of the searches, {listed} {verb} better than {_named(ppo)}.")
    return sentences


def _named(row: Row) -> str:
    return f"{code(row.method)} ({ppl_text(row.final.mean)})"


def _margin(worse: float, better: float) -> str:
    return f", by {1 - better / worse:.1%}" if math.isfinite(worse) else ""
