"""Whether a pruned model can be written, said as early as it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ffprune_env.lm.quiet import quiet_transformers
from ffprune_env.modeling.auto_classes import pruned_model_class
from ffprune_env.modeling.config_names import PREFIX
from ffprune_env.modeling.families import FAMILIES
from ffprune_env.pruning.units import find_units

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def dense_family(model: PreTrainedModel) -> str:
    """The ``model_type`` of a model, or of the dense model that it was pruned from."""
    return str(model.config.model_type).removeprefix(PREFIX)


def why_not_saved(model: PreTrainedModel) -> str | None:
    """What is in the way of writing the model pruned: its family, or code of its own; None if nothing is."""
    family = dense_family(model)
    if family not in FAMILIES:
        return f"a pruned {family} cannot be written yet; families that can are {', '.join(FAMILIES)}"
    pruned = pruned_model_class(family)
    if type(model) in (pruned, pruned.__bases__[1]):  # the second builds the dense layers
        return None
    kind = type(model)
    return (
        f"a pruned {kind.__module__}.{kind.__qualname__} cannot be written: what is read back is a {family} as "
        f"transformers has it, and this one brings code of its own"
    )


def require_writable(model: PreTrainedModel) -> None:
    """Raises ValueError, with what to do, for a model that could not be written after a search.

    Raises:
        ValueError: the model cannot be written, or not even pruned; the second is said first.
    """
    reason = why_not_saved(model)
    if reason is not None:
        find_units(model)
        raise ValueError(f"{reason}: search it with --no-save-model")


def require_writable_folder(name: str) -> None:
    """The same of a local folder, from its config.json alone; whatever is no folder or cannot be read is let pass."""
    try:
        family = str(json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if family.removeprefix(PREFIX) in FAMILIES:
        return
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_transformers(), torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name, trust_remote_code=False))
        except Exception:  # a wrong config can raise anything; loading the model will say what is wrong
            return
    require_writable(model)
