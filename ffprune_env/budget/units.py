"""PruneUnit: one block that is pruned, as far as a budget is concerned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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
        costs: what a budget counts of it with 0, 1, ..., n_groups groups kept, where that is no number of parameters:
            bytes of a file, nanoseconds; it never falls. None: parameters.
    """

    name: str
    kind: UnitKind
    layer: int
    n_groups: int
    n_params: int
    rest_params: int = 0
    costs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for costs that no budget can be met with."""
        if self.costs is None:
            return
        if len(self.costs) != self.n_groups + 1:
            raise ValueError(
                f"{self.name}: {len(self.costs)} costs; those of 0, 1, ... {self.n_groups} groups are "
                f"{self.n_groups + 1}"
            )
        if self.costs[0] < 0 or any(after < before for before, after in pairwise(self.costs)):
            raise ValueError(f"{self.name}: costs must not be negative and never fall as more groups are kept")

    @property
    def group_params(self) -> int:
        """Parameters of one group; every group of a unit has the same number."""
        return self.n_params // self.n_groups

    @property
    def weight(self) -> int:
        """Its part of what σ is a fraction of: w_i or, where it has costs, all that can be saved of them."""
        return self.n_params if self.costs is None else self.costs[-1] - self.costs[0]


def attention_can_be_cut(units: Sequence[PruneUnit]) -> bool:
    """Whether any attention is among the units: where all stay whole, `ffn-only` is `uniform`."""
    return any(unit.kind == "attention" for unit in units)
