"""What of a model cannot be cut, and the modules that are looked for, each found or refused in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffprune_env.budget.units import UnitKind
from ffprune_env.pruning.unit_layout import UnitLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UnsupportedError(ValueError):
    """A part of a model cannot be cut; ``reason`` says why."""

    def __init__(self, model: nn.Module, reason: str) -> None:
        super().__init__(f"{type(model).__name__} cannot be pruned: {reason}")
        self.reason = reason


def owner_of(
    model: nn.Module, layer: nn.Module, name: str, kind: UnitKind, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[str, nn.Module]:
    """Finds the one module inside a layer that owns the given projections."""
    owners = [
        (f"{name}.{path}" if path else name, module)
        for path, module in layer.named_modules()
        if all(hasattr(module, child) for child in inputs) and any(hasattr(module, child) for child in outputs)
    ]
    wanted = " + ".join((*inputs, " or ".join(outputs)))
    if not owners:
        raise UnsupportedError(model, f"{name} has no {kind} module with {wanted}")
    if len(owners) > 1:
        paths = ", ".join(path for path, _ in owners)
        raise UnsupportedError(model, f"{name} has {len(owners)} {kind} modules ({paths}), one expected")
    return owners[0]


def linear_of(model: nn.Module, owner: nn.Module, where: str, attribute: str) -> nn.Linear:
    """A projection of an attention or FFN; UnsupportedError if it is more than weight and bias."""
    module = getattr(owner, attribute)
    # A subclass (a quantized or adapted layer) may keep state beside weight and bias that slicing would miss.
    if type(module) is not nn.Linear:
        raise UnsupportedError(model, f"{where}.{attribute} is a {type(module).__name__}, a torch.nn.Linear is needed")
    return module


def shared_weights(model: PreTrainedModel) -> dict[object, tuple[str, str]]:
    """The weights that two modules share, by their place in memory, with two names of each."""
    first: dict[object, str] = {}
    shared: dict[object, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(_place(parameter), name)
        if other != name:
            shared.setdefault(_place(parameter), (other, name))
    return shared


def refuse_shared_weights(model: PreTrainedModel, layout: UnitLayout, shared: Mapping[object, tuple[str, str]]) -> None:
    """Refuses weights that two modules share: each unit has an order and a number of groups of its own."""
    for module in (*layout.inputs, layout.output):
        for parameter in module.parameters(recurse=False):
            if _place(parameter) in shared:
                names = " and ".join(shared[_place(parameter)])
                raise UnsupportedError(model, f"{names} are one tensor, which cannot be cut for each by itself")


def _place(tensor: torch.Tensor) -> object:
    """What two tensors have in common that start at the same place in memory; those without memory are themselves."""
    return id(tensor) if tensor.is_meta or not tensor.numel() else (tensor.device, tensor.data_ptr())
