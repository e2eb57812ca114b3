"""What a model is around its layers: all that the way from its final hidden states to its logits depends on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules import module as torch_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def state_around_layers(model: PreTrainedModel, decoder: nn.Module) -> Hashable:
    """A value that is another one after the model was changed outside the layers of its decoder.

    It is made of settings of the configuration, and for every module of its identity, class, hooks, public attributes
    and the identity and version of its tensors. No tensor is read and no device waited for: it costs some 0.1 ms.

    It does not see what is written into a tensor past autograd (``parameter.data.mul_(2)``), what a hook or a method
    takes from elsewhere (a variable that it closes over, a field of an object), nor what happens inside a layer, which
    every way to the logits goes through.

    Args:
        model: a causal language model.
        decoder: the part of it that makes the final hidden states.
    """
    everywhere = (tuple(torch_module._global_forward_hooks), tuple(torch_module._global_forward_pre_hooks))
    return everywhere, tuple(_state(module) for module in _around(model, decoder))


def _around(module: nn.Module, decoder: nn.Module, inside: bool = False) -> Iterator[nn.Module]:
    """The module and those in it, without the lists of layers of the decoder."""
    yield module
    inside = inside or module is decoder
    for child in module.children():
        if not (inside and isinstance(child, nn.ModuleList)):
            yield from _around(child, decoder, inside)


def _state(module: nn.Module) -> Hashable:
    hooks = (tuple(module._forward_hooks), tuple(module._forward_pre_hooks))
    tensors = (*module._parameters.values(), *module._buffers.values())
    kind = type(module)
    names = tuple((name, id(child)) for name, child in module._modules.items())
    attributes = {name: value for name, value in vars(module).items() if name != "training"}
    return id(module), kind, id(kind.forward), hooks, names, tuple(map(_tensor, tensors)), _settings(attributes)


def _tensor(tensor: torch.Tensor | None) -> Hashable:
    if tensor is None:
        return None
    if tensor.is_meta:  # accelerate makes them anew in every pass
        return tuple(tensor.shape), tensor.dtype
    # Of a tensor that was made in inference mode nobody counts the changes.
    return id(tensor), tuple(tensor.shape), tensor.dtype, 0 if tensor.is_inference() else tensor._version


def _settings(values: Mapping[str, object]) -> Hashable:
    """Public ones by value, and by identity what has none."""
    return tuple((name, _value(value)) for name, value in values.items() if not name.startswith("_"))


def _value(value: object) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(map(_value, value))
    if isinstance(value, dict):
        return tuple((str(name), _value(x)) for name, x in value.items())
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if hasattr(value, "to_diff_dict"):  # a configuration in another
        return _settings(vars(value))
    return id(value)
