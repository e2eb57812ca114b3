"""What a model is before it is wrapped, for models that turn out not to be prunable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ffprune_env.pruning.streaming import unstream
from ffprune_env.pruning.unit_layout import UnitLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AsItWas:
    """Remembers a model.

    Args:
        model: before it is wrapped.
        layouts: of the units that are to be cut.
    """

    def __init__(self, model: PreTrainedModel, layouts: Sequence[UnitLayout]) -> None:
        self._model, self._layouts = model, layouts
        self._attention: str = model.config._attn_implementation
        names = ("num_key_value_groups", "kv_index")
        self._kept = [{name: getattr(x.owner, name) for name in names if hasattr(x.owner, name)} for x in layouts]

    def restore(self) -> None:
        """Takes off all that was put on since."""
        for layout, kept in zip(self._layouts, self._kept, strict=True):
            for linear in (*layout.inputs, layout.output):
                unstream(linear)
            layout.owner._buffers.pop("kv_index", None)
            for name, value in kept.items():
                if name == "kv_index":
                    layout.owner.register_buffer(name, value)
                else:
                    setattr(layout.owner, name, value)
        if self._model.config._attn_implementation != self._attention:
            self._model.set_attn_implementation(self._attention)
