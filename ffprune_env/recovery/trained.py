"""Which weights of a pruned model are trained: all but the embeddings, a few, or adapters beside them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.lm.head import decoder_of
from ffprune_env.pruning.units import find_units
from ffprune_env.recovery.settings import RecoverySettings, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NARROW = (torch.bfloat16, torch.float16)


def trained_parameters(model: PreTrainedModel, trained: Trained) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name, each once.

    Args:
        model: the pruned model.
        trained: ``all`` but those of embeddings, one of which the head may be; or ``outputs``: of norms and of the
            output projections of attentions and FFNs.
    """
    embeddings = {id(x) for module in model.modules() if isinstance(module, nn.Embedding) for x in module.parameters()}
    free = {name: x for name, x in model.named_parameters() if id(x) not in embeddings}
    if trained == "all":
        return free
    chosen = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    chosen += [layout.output for layout in find_units(model)]
    wanted = {id(x) for module in chosen for x in module.parameters(recurse=False)}
    return {name: x for name, x in free.items() if id(x) in wanted}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter that the model has now has a gradient unless it is given one; outside those that had do.

    Args:
        model: the model.
    """
    before = [(x, x.requires_grad) for x in model.parameters()]
    for x, _ in before:
        x.requires_grad_(False)
    try:
        yield
    finally:
        for x, needed in before:
            x.requires_grad_(needed)
            x.grad = None


def widened(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with weights and buffers of float32, where those were narrower.

    A step changes a weight by less than bfloat16 can tell apart, and such steps would be lost.

    Args:
        model: changed in place; its buffers are other tensors, with the same values.
    """
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dtype in _NARROW:
                parameter.data = parameter.data.float()
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in _NARROW:
                module._buffers[name] = buffer.float()
    return model


def require_adapters() -> None:
    """Raises ValueError where there is no PEFT."""
    if find_spec("peft") is None:
        raise ValueError("adapters need PEFT: pip install -e '.[lora]'")


def with_adapters(model: PreTrainedModel, settings: RecoverySettings) -> Any:
    """The model with an adapter beside every linear layer of its decoder layers; they begin at nothing.

    Args:
        model: changed in place, until the adapters are merged or unloaded.
        settings: the rank, and the seed.

    Raises:
        ValueError: there is no PEFT.
    """
    require_adapters()
    from peft import LoraConfig, get_peft_model

    decoder = decoder_of(model)
    inside = {id(x) for layer in getattr(decoder, "layers", [decoder]) for x in layer.modules()}
    names = [name for name, x in model.named_modules() if type(x) is nn.Linear and id(x) in inside]
    rank = settings.lora or 0
    torch.manual_seed(settings.seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT, which calls transformers by an old name
        adapted = get_peft_model(model, config)
    # Where the model came from is asked for on the hub when adapters are saved, and of no use here.
    adapted.peft_config["default"].base_model_name_or_path = None
    return adapted
