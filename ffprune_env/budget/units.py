"""PruneUnit: one block that is pruned, as far as a budget is concerned."""

from __future__ import annotations

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
    """

    name: str
    kind: UnitKind
    layer: int
    n_groups: int
    n_params: int

    @property
    def group_params(self) -> int:
        """Parameters of one group; every group of a unit has the same number."""
        return self.n_params // self.n_groups
