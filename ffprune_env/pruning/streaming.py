"""Layers that come to their device only while they run (accelerate's offloading), put in order and cut on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from torch import nn


class StreamedLinear(ModelHook):  # type: ignore[misc]
    """A projection of a unit whose weights come when it runs; what ranking and pruning did to it is done to them then.

    Args:
        inner: accelerate's hook, which brings and drops the weights.
        linear: the projection.
        axis: 0 if the groups of the unit are its rows, 1 if they are its columns.

    Attributes:
        order: int64 [rows or columns], which of the stored ones is at each place; None is their own order.
        kept: how many of the first of them are there; None is all.
        offload: True, as for accelerate's hook.
        execution_device: where the weights come to.
    """

    def __init__(self, inner: AlignDevicesHook, linear: nn.Linear, axis: int) -> None:
        self.inner, self.axis = inner, axis
        self.offload, self.execution_device = True, inner.execution_device
        self.order: torch.Tensor | None = None
        self.kept: int | None = None
        self._stored = dict(linear.named_parameters())

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Brings the weights, and cuts them."""
        self.drop(module)  # what a pass that memory cut short has left
        sent: tuple[tuple[Any, ...], dict[str, Any]] = self.inner.pre_forward(module, *args, **kwargs)
        for name in self._stored:
            if name == "weight" or self.axis == 0:  # the bias of an output projection belongs to no group
                cut = nn.Parameter(self._cut(getattr(module, name).data), requires_grad=False)
                module.register_parameter(name, cut)
        return sent

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Drops them."""
        self.drop(module)
        return self.inner.post_forward(module, output)

    def drop(self, module: nn.Module) -> None:
        """Puts parameters without data in their place, which is what accelerate wants to find there."""
        for name, stored in self._stored.items():
            module.register_parameter(name, stored)

    def reorder(self, places: torch.Tensor) -> None:
        """Moves what is at ``places[i]`` now to place i."""
        self.order = places if self.order is None else self.order[places]

    def _cut(self, tensor: torch.Tensor) -> torch.Tensor:
        axis = min(self.axis, tensor.ndim - 1)
        if self.order is not None:
            return tensor.index_select(axis, self.order[: self.kept])
        return tensor if self.kept is None else tensor.narrow(axis, 0, self.kept)


def stream(linear: nn.Linear, axis: int) -> None:
    """Lets a projection whose weights are not resident be ranked and pruned; any other is left as it is."""
    hook = getattr(linear, "_hf_hook", None)
    if isinstance(hook, AlignDevicesHook) and hook.offload:
        add_hook_to_module(linear, StreamedLinear(hook, linear, axis))


def unstream(linear: nn.Linear) -> None:
    """Undoes :func:`stream`."""
    hook = streamed(linear)
    if hook is not None:
        hook.drop(linear)
        add_hook_to_module(linear, hook.inner)


def streamed(linear: nn.Linear) -> StreamedLinear | None:
    """What brings the weights of a projection; None if they are resident."""
    hook = getattr(linear, "_hf_hook", None)
    return hook if isinstance(hook, StreamedLinear) else None


@contextmanager
def weight_of(linear: nn.Linear) -> Iterator[torch.Tensor]:
    """The weights of a projection, in their order now, on the device that it runs on."""
    hook = streamed(linear)
    if hook is None:
        yield linear.weight.detach()
        return
    hook.pre_forward(linear)
    try:
        yield linear.weight.detach()
    finally:
        hook.post_forward(linear, None)
