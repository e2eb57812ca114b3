"""What a run found over its sparsities, in one table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from ffprune_env.budget.even import BASELINES
from ffprune_env.lm.excess import change_text
from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK, FELL_BACK_NOTE
from ffprune_env.run.results import Measured, label


def sparsities_table(results: Mapping[float, Measured]) -> Table:
    """Test perplexity of every policy at every sparsity, of the models that are written: calibrated, if that was asked.

    Args:
        results: of the policies, by the sparsity asked for.
    """
    table = Table(title="Test perplexity over sparsity")
    table.add_column("σ", justify="right")
    names = [name for name in ("dense", *BASELINES, "chosen") if any(name in x.final for x in results.values())]
    compared = "uniform" in names
    for column in (*map(label, names), *(["against\nuniform"] if compared else [])):
        table.add_column(column, justify="right")
    fell_back = False
    for target in sorted(results):
        final, asked = results[target].final, results[target].asked
        row = [f"{target:g}"]
        for name in names:
            found = final.get(name)
            marked = found is not None and found.calibrated and found.calibration != asked
            fell_back |= marked
            row.append("" if found is None else f"{found.test_ppl:.2f}{f' {FELL_BACK_MARK}' if marked else ''}")
        uniform, chosen = final.get("uniform"), final["chosen"]
        if compared:
            alike = uniform is not None and uniform.calibration == chosen.calibration
            row.append(change_text(chosen.test_ppl, uniform.test_ppl) if uniform is not None and alike else "")
        table.add_row(*row)
    if fell_back:
        table.caption, table.caption_justify = FELL_BACK_NOTE, "left"
    return table
