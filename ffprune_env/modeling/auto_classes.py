"""Lets transformers' Auto classes load pruned models without trusting the code in their folder.

Transformers takes seconds to import and has no place where a package could announce its models beforehand. So they are
registered as soon as transformers is there: by ``import ffprune_env`` if it was imported before, else by the first
public name that needs it, or by :func:`register_auto_classes`, which imports it.
"""

from __future__ import annotations

import sys
from typing import Any

from ffprune_env.modeling.config_names import named_as_pruned

#: Families that pruned models can be written of, by their ``model_type``.
FAMILIES = ("llama", "mistral", "qwen2", "opt")
_NAMES_PRUNED = "_ffprune_names_pruned"


def register_auto_classes() -> None:
    """Makes transformers' Auto classes load pruned models without ``trust_remote_code``; imports transformers.

    Needed only where ``import ffprune_env`` comes before transformers and nothing of ffprune_env is used before the
    Auto classes are. It may be called any number of times.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

    from ffprune_env.modeling.modeling_ffprune import PRUNED_MODELS

    for model in PRUNED_MODELS.values():
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)
    _name_as_pruned(PreTrainedConfig)


def register_if_imported() -> None:
    """Does what :func:`register_auto_classes` does if transformers was imported, else nothing."""
    if "transformers" in sys.modules:
        register_auto_classes()


def pruned_model_class(family: str) -> Any:
    """The model class of a pruned family; imports transformers' families, and registers all of ours.

    Args:
        family: one of :data:`FAMILIES`.
    """
    register_auto_classes()
    from ffprune_env.modeling.modeling_ffprune import PRUNED_MODELS

    return PRUNED_MODELS[family]


def _name_as_pruned(base: Any) -> None:
    """Lets Auto classes see the pruned family in a config.json, which names the dense one.

    There is no other place to tell them: what they look up is the model type as the file has it.
    """
    if hasattr(base, _NAMES_PRUNED):
        return
    read = base.get_config_dict.__func__

    def get_config_dict(cls: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        settings, unused = read(cls, *args, **kwargs)
        return named_as_pruned(settings), unused

    base.get_config_dict = classmethod(get_config_dict)
    setattr(base, _NAMES_PRUNED, True)
