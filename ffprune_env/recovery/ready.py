"""A pruned model made ready to be trained, and as it was when that is over, but for its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.lm.head import look_again
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.trained import frozen, trained_parameters, widened, with_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def ready(model: PreTrainedModel, settings: RecoverySettings) -> Iterator[tuple[Any, dict[str, torch.Tensor]]]:
    """Inside, what the settings say can be trained, and nothing else; adapters that are still there in the end go.

    Args:
        model: the pruned model, changed in place.
        settings: which weights are trained, or adapters of which rank.

    Yields:
        The model, or the same with adapters, and the values of what is trained, on the CPU.
    """
    adapted = settings.lora is not None
    cache, training = model.config.use_cache, model.training
    with frozen(model), formats_kept(model):
        student = with_adapters(model, settings) if adapted else widened(model)
        trained = dict(student.named_parameters())
        if adapted:
            trained = {name: x for name, x in trained.items() if x.requires_grad}
        else:
            trained = trained_parameters(model, settings.trained)
        for x in trained.values():
            x.requires_grad_(True)
        look_again(model)
        try:
            yield student, {name: x.detach().cpu().clone() for name, x in trained.items()}
        finally:
            if adapted and _has_adapters(model):  # an error, or Ctrl-C
                student.unload()
            model.config.use_cache = cache
            model.train(training)
            if settings.save_memory:
                model.gradient_checkpointing_disable()


@contextmanager
def formats_kept(model: nn.Module) -> Iterator[None]:
    """Inside, number formats may be changed; afterwards every parameter has its own again, and buffers are as before.

    Parameters keep the values that they came to, rounded to their formats. Buffers are not trained, and some are finer
    than the weights, such as the frequencies of rotary embeddings: rounding these would make another model.

    Args:
        model: the model.
    """
    formats = [(x, x.dtype) for x in model.parameters()]
    buffers = [(module, name, x) for module in model.modules() for name, x in module.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for parameter, dtype in formats:
            parameter.data = parameter.data.to(dtype)
        for module, name, buffer in buffers:
            there = module._buffers.get(name)
            module._buffers[name] = buffer if there is None else buffer.to(there.device)


def put_back(student: Any, values: dict[str, torch.Tensor]) -> None:
    """Gives parameters the values that they had, by name."""
    with torch.no_grad():
        for name, x in student.named_parameters():
            if name in values:
                x.copy_(values[name])


def _has_adapters(model: PreTrainedModel) -> bool:
    return any("lora_" in name for name, _ in model.named_parameters())
