"""The linear layers of a decoder, told apart by the tensors they read, and the second moments of such tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ffprune_env.lm.head import decoder_outputs, head_of
from ffprune_env.pruning.gram import add_products
from ffprune_env.pruning.layer_calls import probe_text
from ffprune_env.pruning.units import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SharedInput:
    """Linear layers of one decoder layer that read the same tensor, such as q, k and v.

    Attributes:
        layer: the decoder layer.
        names: paths of the linear layers inside it.
    """

    layer: nn.Module
    names: tuple[str, ...]

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The linear layers, in the order of ``names``."""
        found = (self.layer.get_submodule(name) for name in self.names)
        return tuple(module for module in found if isinstance(module, nn.Linear))


@torch.no_grad()
def shared_inputs(model: PreTrainedModel, windows: torch.Tensor) -> list[list[SharedInput]]:
    """Groups the linear layers of every decoder layer by the tensor they read, from one run over a few tokens.

    Args:
        model: a causal language model.
        windows: int64 [n, seq_len].

    Returns:
        Per decoder layer, its groups in the order in which they run.

    Raises:
        ValueError: a linear layer is of a subclass, which may keep more than weight and bias, or did not run.
    """
    batch = probe_text(windows)
    head_of(model)  # before there are hooks
    layers = find_layers(model)[1]
    # The tensors are kept until all have run, so that no other takes the identity of one of them.
    seen: list[list[tuple[torch.Tensor, list[str]]]] = [[] for _ in layers]
    with ExitStack() as hooks:
        for layer, readers in zip(layers, seen, strict=True):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear):
                    if type(module) is not nn.Linear:
                        raise ValueError(f"{name} is a {type(module).__name__}, a torch.nn.Linear is needed")
                    hooks.callback(module.register_forward_pre_hook(_note(name, readers)).remove)
        decoder_outputs(model, batch)
    for layer, readers in zip(layers, seen, strict=True):
        ran = {name for _, names in readers for name in names}
        idle = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear) and name not in ran]
        if idle or not ran:
            what = f"{', '.join(idle)} of a {type(layer).__name__}" if idle else f"no linear layer of {layer}"
            raise ValueError(f"{type(model).__name__} cannot be compressed: on text, {what} ran (experts are not done)")
    return [[SharedInput(layer, tuple(names)) for _, names in found] for layer, found in zip(layers, seen, strict=True)]


def _note(name: str, readers: list[tuple[torch.Tensor, list[str]]]) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        for tensor, names in readers:
            if tensor is inputs[0]:
                names.append(name)
                return
        readers.append((inputs[0], [name]))

    return hook


@torch.no_grad()
def second_moments(
    model: PreTrainedModel, modules: Sequence[nn.Module], windows: torch.Tensor, batch_size: int
) -> list[torch.Tensor]:
    """G = XᵀX of what some modules read, from one run over the windows.

    Args:
        model: a causal language model.
        modules: of it.
        windows: int64 [n, seq_len], calibration text.
        batch_size: windows per forward pass.

    Returns:
        Per module [columns, columns], in float32 or, of a float64 input, float64, on the device of the input.

    Raises:
        ValueError: an input is not finite.
    """
    head_of(model)  # before there are hooks
    with summed_products(modules) as sums:
        for batch in torch.split(windows, batch_size):
            decoder_outputs(model, batch)
    for place, module in enumerate(modules):
        require_finite(sums[place], module)
    return [sums[place] for place in range(len(modules))]


@contextmanager
def summed_products(modules: Sequence[nn.Module]) -> Iterator[dict[int, torch.Tensor]]:
    """Yields what fills, by the place of the module, with G = XᵀX of what the modules read inside the context."""
    sums: dict[int, torch.Tensor] = {}
    with ExitStack() as hooks:
        for place, module in enumerate(modules):
            hooks.callback(module.register_forward_pre_hook(_accumulate(sums, place)).remove)
        yield sums


def require_finite(gram: torch.Tensor, module: nn.Module) -> None:
    """Raises ValueError unless G = XᵀX of what a module reads is finite."""
    if not bool(torch.isfinite(gram.diagonal()).all()):
        raise ValueError(f"the input of {module} is not finite on the calibration text: check weights and dtype")


def _accumulate(sums: dict[int, torch.Tensor], place: int) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        x = inputs[0].flatten(0, -2)  # (B * T, columns)
        if place not in sums:
            sums[place] = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.promote_types(torch.float32, x.dtype))
        add_products(sums[place], x, x)

    return hook
