"""What flows through units that are given what the dense model gave them: one at a time, and all in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.lm.head import decoder_outputs
from ffprune_env.pruning.unit_layout import UnitLayout, member_columns

if TYPE_CHECKING:
    from ffprune_env.pruning.prunable import PrunableModel

# Of what says next to nothing rounding may be a large part.
_QUIET = 0.05
# Relative error where a unit ends that rounding explains: four spacings of the numbers next to 1 in half precision. The
# same products of the same numbers differ by much less, most often by nothing.
_ROUNDING = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-3, torch.float64: 1e-9}
_MEMBERS = {"attention": "head", "ffn": "channel"}

Given = dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]
End = tuple[torch.Tensor, torch.Tensor]


class UnitFlow:
    """One forward pass of the dense model, which can be done again with units in another order, cut or masked.

    Every time each unit gets what it got the first time, so that no unit shows what became of those before it: what is
    different where a unit ends is its own doing.

    Args:
        prunable: a model, dense now.
        tokens: int64 [B, T].

    Attributes:
        dense: per unit, what its output projection takes, [..., columns], and what it gives, [..., C].
    """

    def __init__(self, prunable: PrunableModel, tokens: torch.Tensor) -> None:
        self._prunable, self._tokens = prunable, tokens
        self._given: Given = {}

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._given[module] = (tuple(map(_copy, args)), {name: _copy(value) for name, value in kwargs.items()})

        self.dense = self._pass(note)

    def again(self, masked: Sequence[int] | None = None) -> list[End]:
        """The pass once more, of the model as it is now.

        Args:
            masked: groups per unit whose columns are left as they are; the others are made zero.

        Returns:
            As :attr:`dense`.
        """

        def give(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            first, named = self._given[module]
            # What is no tensor, such as a cache, is of this pass.
            now = tuple(_copy(old) if torch.is_tensor(old) else new for old, new in zip(first, args, strict=True))
            return now, kwargs | {name: _copy(old) for name, old in named.items() if torch.is_tensor(old)}

        return self._pass(give, masked)

    def _pass(self, before: Callable[..., Any], masked: Sequence[int] | None = None) -> list[End]:
        ends: dict[int, End] = {}
        layouts = self._prunable.layouts
        with ExitStack() as hooks:
            for i, layout in enumerate(layouts):
                # An FFN may have no module of its own but the layer. Halves of a matrix run in the pruned model alone.
                readers = layout.inputs if layout.fused is None else ()
                for module in dict.fromkeys((layout.owner, *readers)):
                    hook = module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
                    hooks.callback(hook.remove)
                if masked is not None:
                    mask = _mask(masked[i] * layout.width)
                    hooks.callback(layout.output.register_forward_pre_hook(mask).remove)
                hooks.callback(layout.output.register_forward_hook(_keep(ends, i)).remove)
            decoder_outputs(self._prunable.model, self._tokens)
        return [ends[i] for i in range(len(layouts))]


def off_in_order(layout: UnitLayout, order: torch.Tensor, got: End, dense: End) -> str:
    """What is wrong with a unit whose heads or channels are in another order; nothing if rounding explains it.

    Each head and channel is what it was, at its new place, and so is what the unit gives.

    Args:
        layout: of the unit.
        order: int64 [members], the original index of the head or channel at each place.
        got: where the unit ends now.
        dense: where it ended before.
    """
    now, before = (x.double().flatten(0, -2) for x in (got[0], dense[0][..., member_columns(layout, order)]))
    shape = (len(now), layout.n_members, layout.member_width)
    sizes, errors = (x.view(shape).norm(dim=2) for x in (before, now - before))
    if layout.unit.kind == "ffn":  # a channel may be silent at most tokens
        sizes, errors = (x.norm(dim=0, keepdim=True) for x in (sizes, errors))
    off = _usual(sizes, errors)
    worst = int(off.argmax())
    if not float(off[worst]) <= _ROUNDING[got[0].dtype]:
        return f"{_MEMBERS[layout.unit.kind]} {int(order[worst])} is off by {float(off[worst]):.2g} of its size"
    return off_in_views(got, dense)


def off_in_views(got: End, masked: End) -> str:
    """What is wrong with what a unit gives; nothing if rounding explains it.

    Args:
        got: where it ends.
        masked: where it should.
    """
    now, expected = (x[1].double().flatten(0, -2) for x in (got, masked))
    off = float(_usual(expected.norm(dim=1), (now - expected).norm(dim=1)))
    return "" if off <= _ROUNDING[got[1].dtype] else f"what it gives is off by {off:.2g} of its size"


def _usual(sizes: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Relative error at all but the worst eighth of the tokens: [tokens, ...] to [...].

    A score that is large and rounded the other way makes a token attend elsewhere; that happens to few of them.
    """
    relative = errors / sizes.clamp(min=_QUIET * float(sizes.square().mean().sqrt()) + torch.finfo(sizes.dtype).tiny)
    return relative.sort(dim=0, descending=True).values[len(relative) // 8]


def _copy(value: Any) -> Any:
    """So that nothing is changed in place that is given again."""
    return value.clone() if torch.is_tensor(value) else value


def _keep(ends: dict[int, End], i: int) -> Callable[[nn.Module, tuple[torch.Tensor], torch.Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ends[i] = (inputs[0].clone(), output.clone())

    return hook


def _mask(columns: int) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = inputs[0].clone()
        x[..., columns:] = 0
        return (x,)

    return hook
