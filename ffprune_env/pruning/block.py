"""The place of a unit in its decoder layer, and the layer without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ffprune_env.budget.units import UnitKind
from ffprune_env.modeling.absent import norms_of, put, stand_ins

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class UnitBlock:
    """Where a unit sits in its decoder layer.

    Attributes:
        kind: of the unit.
        layer: the decoder layer.
        name: its path in the model.
        number: which one it is.
        places: paths of the modules that are the unit, inside the layer; of these the last gives what the unit gives.
        width: features of the hidden state.
        config: of the model.
    """

    kind: UnitKind
    layer: nn.Module
    name: str
    number: int
    places: tuple[str, ...]
    width: int
    config: Any

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        layer: nn.Module,
        name: str,
        number: int,
        kind: UnitKind,
        places: tuple[str, ...],
        output: nn.Linear,
    ) -> UnitBlock:
        """The place of a unit of a model, whose output projection gives as many features as a hidden state has."""
        return cls(kind, layer, name, number, places, output.out_features, model.config.get_text_config())

    @property
    def gone(self) -> tuple[str, ...]:
        """Paths in the layer of all modules that go with the last group: the unit itself and its own norms."""
        before, behind = norms_of(self.layer, self.kind)
        return (*self.places, *before, *behind)

    @property
    def end(self) -> nn.Module:
        """The module whose output is added to the hidden state, but for multipliers."""
        return self.norm_behind or self.layer.get_submodule(self.places[-1])

    @property
    def norm_behind(self) -> nn.Module | None:
        """The norm that what the unit gives goes through, if there is one of its own."""
        behind = norms_of(self.layer, self.kind)[1]
        return self.layer.get_submodule(behind[-1]) if behind else None

    def n_params(self) -> int:
        """Parameters of all of it."""
        found = {p for path in self.gone for p in self.layer.get_submodule(path).parameters()}
        return sum(parameter.numel() for parameter in found)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Inside, the layer runs without the unit, as if it gave 0; nothing of it is computed."""
        modules = stand_ins(self.layer, self.kind, self.places, self.config, self.number, self.width)
        for module in modules.values():
            module.train(self.layer.training)
        before = put(self.layer, modules)
        try:
            yield
        finally:
            put(self.layer, before)


def path_inside(layer: str, path: str) -> str:
    """The path of a module inside its layer, of both their paths in the model."""
    return path.removeprefix(layer).removeprefix(".")
