"""The paper's Table 3: what calibration and search are worth alone and together."""

from __future__ import annotations

from rich.table import Table

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.rows import find, ppl_text, rows_at, target_sparsities
from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK, ONE_SEED_FELL_BACK

_TITLES = ("σ", "neither", "calibration only", "search only", "both")


def parts_at(comparison: Comparison, sparsity: float) -> list[float | None]:
    """Test perplexity with neither, calibration, search, and both; None for what was not measured.

    Search alone is the one that was rewarded for the model that is only cut, which is what it is measured on.

    Args:
        comparison: of :data:`ffprune_env.methods.ablations.ABLATIONS`.
        sparsity: σ that was asked for, one of the comparison's.
    """
    rows = rows_at(comparison, sparsity)
    uniform, alone, both = (find(rows, name) for name in ("uniform", "ppo-plain-reward", "ppo"))
    return [
        None if uniform is None else uniform.plain.mean,
        None if uniform is None or uniform.calibrated is None else uniform.calibrated.mean,
        None if alone is None else alone.plain.mean,
        None if both is None or both.calibrated is None else both.calibrated.mean,
    ]


def ablation_markdown(comparison: Comparison) -> str:
    """The table in Markdown, means over seeds."""
    texts = _texts(comparison)
    lines = [f"| {' | '.join(line)} |" for line in (_TITLES, ("---:",) * len(_TITLES), *texts)]
    return "\n".join([*lines, *(["", *_notes(texts)] if _notes(texts) else [])]) + "\n"


def ablation_table(comparison: Comparison) -> Table:
    """The table for the terminal."""
    table = Table(title="Test PPL with and without the parts, means over seeds")
    for title in _TITLES:
        table.add_column(title, justify="right")
    texts = _texts(comparison)
    for line in texts:
        table.add_row(*line)
    table.caption, table.caption_justify = "\n".join(_notes(texts)) or None, "left"
    return table


def _texts(comparison: Comparison) -> list[tuple[str, ...]]:
    lines = []
    for sparsity in target_sparsities(comparison):
        rows = rows_at(comparison, sparsity)
        # Of the four, the second and the last are calibrated.
        fell_back = [(row := find(rows, name)) is not None and row.fell_back for name in ("uniform", "ppo")]
        marks = (False, fell_back[0], False, fell_back[1])
        texts = ["–" if ppl is None else ppl_text(ppl) for ppl in parts_at(comparison, sparsity)]
        marked = (f"{x} {FELL_BACK_MARK}" if mark else x for x, mark in zip(texts, marks, strict=True))
        lines.append((f"{sparsity:g}", *marked))
    return lines


def _notes(texts: list[tuple[str, ...]]) -> list[str]:
    marked = any(text.endswith(FELL_BACK_MARK) for line in texts for text in line)
    return [ONE_SEED_FELL_BACK] if marked else []
