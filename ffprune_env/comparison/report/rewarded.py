"""The table of what searches were rewarded for, on data that none of them saw."""

from __future__ import annotations

from statistics import fmean

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.grids import NONE, Column, Entry, Grid, name_entry
from ffprune_env.comparison.report.rows import left_out, rows_at
from ffprune_env.evaluators.objectives.mix import reward_of

_MEANING = {
    "accuracy": "share of questions whose right answer is the likeliest",
    "margin": "how much likelier the right answer is than the best wrong one, in nats",
    "value": "what the function says",
}


def rewarded_grid(comparison: Comparison, sparsity: float) -> Grid | None:
    """The held-out reward of the final models, best first, below the dense model; None if text alone is rewarded.

    Args:
        comparison: what was measured.
        sparsity: σ that was asked for, one of the comparison's.
    """
    dense = comparison.dense_held_out
    rows = [row for row in rows_at(comparison, sparsity) if any(cell.held_out for cell in row.cells)]
    if not dense or not rows:
        return None
    names = [name for name in dense if name != "loss"]
    columns = [Column("method", "method"), Column("seeds", "seeds"), Column("reward", "reward", best="max")]
    columns += [Column(name, name) for name in names]
    known = {row.method: [cell.held_out for cell in row.cells if cell.held_out] for row in rows}
    rewards = {method: [reward_of(one, dense) for one in found] for method, found in known.items()}
    apart = left_out(rows)
    entries = [[Entry("dense"), Entry(NONE), Entry(f"{reward_of(dense, dense):.3f}")]]
    entries[0] += [Entry(f"{dense[name]:.3f}") for name in names]
    for row in sorted(rows, key=lambda row: -fmean(rewards[row.method])):
        every = rewards[row.method]
        detail = f"{min(every):.3f}{NONE}{max(every):.3f}" if len(every) > 1 else ""
        reward = Entry(f"{fmean(every):.3f}", detail, None if row in apart else fmean(every))
        parts = [Entry(f"{fmean(one[name] for one in known[row.method]):.3f}") for name in names]
        seeds = Entry(NONE if row.seeds is None else f"{row.seeds}")
        entries.append([name_entry(row), seeds, reward, *parts])
    notes = ["What the reward of the searches says of the final models on data that no search saw, means over seeds."]
    notes += [f"{name}: {_MEANING[name]}." for name in names if name in _MEANING]
    return Grid(columns, entries, notes)
