"""The figures that the paper prints, as far as they could be read."""

from __future__ import annotations

#: Where the figures were read: not in the paper itself, of which no copy with its tables was at hand.
SOURCE = (
    "The paper's figures are those of arXiv 2511.18977v1 as transcribed, row by row and for its own method alone, in "
    "docs/fastforward_clean_manifest_20260615 of github.com/YuanTheouy/structure_pruning."
)
#: Models of the paper's tables, by the names that ``--models`` takes.
PAPER_MODELS = (
    "opt-125m", "opt-1.3b", "opt-2.7b", "llama-7b", "llama-13b", "llama-2-7b", "llama-2-70b", "mistral-7b"
)  # fmt: skip

# Ours and Ours (Calib) at 20 %, the same at 30 %.
_TABLE_2 = {
    "opt-125m": (31.44, 30.67, 39.53, 36.19),
    "opt-1.3b": (16.75, 15.82, 21.35, 18.65),
    "opt-2.7b": (14.55, 13.75, 17.51, 16.23),
    "llama-7b": (7.25, 6.64, 8.65, 8.02),
    "llama-13b": (6.22, 5.67, 7.06, 6.43),
    "llama-2-7b": (7.54, 6.79, 8.73, 8.08),
    "llama-2-70b": (4.32, 4.06, 4.88, 4.62),
}
# Calib., Search, Search + Calib.
_TABLE_3 = {
    "opt-125m": (32.25, 31.44, 30.67),
    "opt-1.3b": (17.15, 16.75, 15.82),
    "opt-2.7b": (14.65, 14.55, 13.75),
    "llama-2-7b": (7.15, 7.54, 6.79),
    "mistral-7b": (7.22, 6.89, 6.48),
}
_COLUMNS_2 = (("Ours", 0.2), ("Ours (Calib)", 0.2), ("Ours", 0.3), ("Ours (Calib)", 0.3))
_LINES_3 = ("Calib.", "Search", "Search + Calib.")

#: By table, model, label of the row, σ and column: perplexities, accuracies in percent, and GPU-hours.
PRINTED: dict[tuple[int, str, str, float, str], float] = {
    (1, "llama-7b", "Ours (C4)", 0.2, "average"): 61.19,
    (1, "llama-7b", "Ours (Calib)", 0.2, "average"): 61.89,
    **{
        (2, model, label, sparsity, "ppl"): value
        for model, values in _TABLE_2.items()
        for (label, sparsity), value in zip(_COLUMNS_2, values, strict=True)
    },
    **{
        (3, model, label, 0.2, "ppl"): value
        for model, values in _TABLE_3.items()
        for label, value in zip(_LINES_3, values, strict=True)
    },
    (4, "llama-7b", "Ours (Calib)", 0.2, "search"): 6.13,
    (4, "llama-7b", "Ours (Calib)", 0.2, "total"): 7.10,
    (4, "llama-7b", "Ours (Calib)", 0.2, "ppl"): 6.64,
    (4, "llama-7b", "Ours (Calib), warm-started", 0.3, "search"): 7.03,
    (4, "llama-7b", "Ours (Calib), warm-started", 0.3, "total"): 8.12,
    (4, "llama-7b", "Ours (Calib), warm-started", 0.3, "ppl"): 8.02,
}


def printed(table: int, model: str, label: str, sparsity: float, column: str) -> float | None:
    """What the paper prints in one place; None where that could not be read, or it prints nothing.

    Args:
        table: its number.
        model: its name here.
        label: of the row.
        sparsity: σ, 0 of the dense model.
        column: ``ppl``, ``search`` or ``total``, a task, or ``average``.
    """
    return PRINTED.get((table, model, label, sparsity, column))
