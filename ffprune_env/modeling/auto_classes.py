"""Lets transformers' Auto classes load pruned models without trusting the code in their folder.

Transformers takes seconds to import and has no place where a package could announce its models beforehand. So they are
registered as soon as transformers is there: by ``import ffprune_env`` if it was imported before, else by the first
public name that needs it, or by :func:`register_auto_classes`, which imports it.
"""

from __future__ import annotations

import sys
from typing import Any

from ffprune_env.modeling.config_names import named_as_pruned
from ffprune_env.modeling.families import FAMILIES

_NAMES_PRUNED = "_ffprune_names_pruned"


def register_auto_classes() -> None:
    """Makes transformers' Auto classes load pruned models without ``trust_remote_code``; imports transformers.

    Needed only where ``import ffprune_env`` comes before transformers and nothing of ffprune_env is used before the
    Auto classes are. It may be called any number of times.
    """
    import transformers

    from ffprune_env.modeling.modeling_ffprune import pruned_classes

    for family in FAMILIES:
        try:
            classes = pruned_classes(family)
        except ImportError:  # transformers is older than the family
            continue
        config_class = classes["AutoConfig"]
        transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto in classes.keys() - {"AutoConfig"}:
            getattr(transformers, auto).register(config_class, classes[auto], exist_ok=True)
    _name_as_pruned(transformers.PreTrainedConfig)


def register_if_imported() -> None:
    """Does what :func:`register_auto_classes` does if transformers was imported, else nothing."""
    if "transformers" in sys.modules:
        register_auto_classes()


def pruned_model_class(family: str) -> Any:
    """The causal language model of a pruned family; imports transformers' families, and registers all of ours.

    Args:
        family: one of :data:`~ffprune_env.modeling.families.FAMILIES`.
    """
    register_auto_classes()
    from ffprune_env.modeling.modeling_ffprune import pruned_classes

    return pruned_classes(family)["AutoModelForCausalLM"]


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
