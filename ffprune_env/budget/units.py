"""PruneUnit: one block that is pruned, as far as a budget is concerned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["attention", "ffn"]


@dataclass(frozen=True)
class PruneUnit:
    """One prunable block: the attention or the FFN of one decoder layer.

    Attributes:
        name: path of the owning module inside the model, ending in its kind.
        kind: ``"attention"`` or ``"ffn"``.
        layer: index of the decoder layer, from 0.
        n_groups: what can be removed one by one: heads (attention), channels or blocks of channels (FFN).
        n_params: w_i, the parameters that go away in proportion as groups go (docs/design.md, 2).
        rest_params: further parameters of the block, which stay until its last group goes: keys and values that query
            heads share, norms, the bias of the output projection.
    """

    name: str
    kind: UnitKind
    layer: int
    n_groups: int
    n_params: int
    rest_params: int = 0

    @property
    def group_params(self) -> int:
        """Parameters of one group; every group of a unit has the same number."""
        return self.n_params // self.n_groups


def units_by_layer(units: Sequence[PruneUnit]) -> list[list[int]]:
    """Indices of the units of every decoder layer: its attention, unless that stays whole, and its FFN.

    Args:
        units: the N units, in their order.
    """
    layers: dict[int, list[int]] = {}
    for i, unit in enumerate(units):
        layers.setdefault(unit.layer, []).append(i)
    return list(layers.values())


def attention_can_be_cut(units: Sequence[PruneUnit]) -> bool:
    """Whether any attention is among the units: where all stay whole, `ffn-only` is `uniform`."""
    return any(unit.kind == "attention" for unit in units)
