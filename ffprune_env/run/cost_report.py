"""What a search cost, part by part and in sum, for ``best.json`` and for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ffprune_env.evaluators.ledger import Part, in_sum
from ffprune_env.lm.cost import Cost


def cost_content(costs: Mapping[Part, Cost]) -> dict[str, Any]:
    """The object ``cost`` of ``best.json``: every part that was made, and ``total``."""
    return {str(name): _content(cost) for name, cost in costs.items()} | {"total": _content(in_sum(costs))}


def cost_table(costs: Mapping[Part, Cost]) -> Table:
    """The same as a table; what is measured only to be reported is in none of its rows."""
    table = Table(title="what it cost")
    for column in ("part", "forward\npasses", "backward\npasses", "tokens\nread", "device-\nhours"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, cost in costs.items():
        table.add_row(name, *_cells(cost))
    table.add_section()
    table.add_row("all", *_cells(in_sum(costs)))
    return table


def _content(cost: Cost) -> dict[str, Any]:
    return {
        "forward_passes": _whole(cost.forward_passes),
        "backward_passes": _whole(cost.backward_passes),
        "forward_tokens": cost.forward_tokens,
        "backward_tokens": cost.backward_tokens,
        "seconds": cost.seconds,
        "device_hours": cost.device_hours,
    }


def _cells(cost: Cost) -> tuple[str, ...]:
    passes = (f"{round(n):,}" for n in (cost.forward_passes, cost.backward_passes))
    return (*passes, f"{cost.forward_tokens:,}", f"{cost.device_hours:.4f}")


def _whole(passes: float) -> float:
    """As an integer where it is one."""
    return int(passes) if passes.is_integer() else round(passes, 3)
