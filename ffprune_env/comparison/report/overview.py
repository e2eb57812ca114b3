"""The table of a report that goes over all sparsities, before anything is known of the format it is written in."""

from __future__ import annotations

import math
from statistics import fmean

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.grids import (
    NONE,
    Column,
    Entry,
    Grid,
    fell_back_note,
    joint_note,
    lacks_update_note,
    name_entry,
    perplexity_entry,
    rebuild_note,
)
from ffprune_env.comparison.report.rows import (
    Row,
    code,
    find,
    left_out,
    methods,
    ppl_text,
    rows_at,
    target_sparsities,
)
from ffprune_env.lm.excess import share_removed


def overview_grid(comparison: Comparison) -> Grid | None:
    """Final test perplexity of every method at every sparsity, and the mean share of e(`uniform`) that it removes.

    Args:
        comparison: what was measured.

    Returns:
        The table, the largest mean share first, below the dense model; None of a single sparsity.
    """
    sparsities = target_sparsities(comparison)
    if len(sparsities) < 2:
        return None
    tables = {sparsity: rows_at(comparison, sparsity) for sparsity in sparsities}
    apart = {sparsity: left_out(rows) for sparsity, rows in tables.items()}
    shares = {name: _mean_share(comparison, name, tables, apart) for name in methods(comparison)}
    lines: list[tuple[float, list[Entry]]] = []
    for name, share in shares.items():
        entries = []
        for sparsity, rows in tables.items():
            row = find(rows, name)
            entries.append(Entry(NONE) if row is None else perplexity_entry(row.final, row not in apart[sparsity]))
        cells = tuple(cell for cell in comparison.cells if cell.method == name)
        known = math.isfinite(share)
        last = Entry(f"{share:.1%}" if known else NONE, value=share if known else None)
        lines.append((-share if known else math.inf, [name_entry(Row(name, cells)), *entries, last]))
    ranked = [line for _, line in sorted(lines, key=lambda x: x[0])]
    dense = [Entry("dense"), *[Entry(ppl_text(comparison.dense_test_ppl))] * len(sparsities), Entry(NONE)]
    columns = [
        Column("method", "method"),
        *(Column(f"σ = {sparsity:g}", f"σ = {sparsity:g}", best="min") for sparsity in sparsities),
        Column("mean share of e(uniform) removed", "e(uniform)\nremoved", best="max"),
    ]
    every = [row for rows in tables.values() for row in rows]
    notes = [
        "Test PPL with calibration, or without where there is none: means over seeds, with the lowest and the highest "
        "seed. Bold: best of its column.",
        f"The last column is the mean over σ of 1 - e(method) / e({code('uniform')}), with e(x) = ln PPL(x) - "
        "ln PPL(dense); only of methods that were measured, and can be compared, at every σ.",
        *joint_note(every),
        *rebuild_note(every),
        *lacks_update_note(every),
        *fell_back_note(every),
    ]
    return Grid(columns, [dense, *ranked], notes)


def _mean_share(
    comparison: Comparison, method: str, tables: dict[float, list[Row]], apart: dict[float, list[Row]]
) -> float:
    """Mean over sparsities of the share of e(`uniform`) that a method removes; NaN where one is not known."""
    shares = []
    for sparsity, rows in tables.items():
        row, uniform = (find(rows, name) for name in (method, "uniform"))
        if row is None or uniform is None or row in apart[sparsity] or uniform in apart[sparsity]:
            return math.nan
        shares.append(share_removed(row.final.mean, uniform.final.mean, comparison.dense_test_ppl))
    return fmean(shares)
