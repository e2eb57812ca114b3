"""Lets transformers' Auto classes load pruned models without trusting the code in their folder.

``import ffprune_env`` must stay instant and transformers takes seconds, so registration waits until transformers is
imported. Even then the families themselves may be half imported, so what is registered is a stand-in, which imports the
real configuration and model when AutoConfig first meets a pruned model.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ffprune_env.modeling.config_names import PREFIX, named_as_pruned

#: Families that pruned models can be written of, by their ``model_type``.
FAMILIES = ("llama", "mistral", "qwen2", "opt")
_MODULE = "transformers.models.auto.configuration_auto"
_NAMES_PRUNED = "_ffprune_names_pruned"


def register_when_imported() -> None:
    """Makes AutoConfig and AutoModelForCausalLM know the pruned families, now and whenever transformers is imported."""
    sys.meta_path.insert(0, _AfterImport())
    if _MODULE in sys.modules:
        _register(importlib.import_module(_MODULE))  # another thread may not have finished importing it


class _AfterImport(MetaPathFinder):
    """Registers the stand-ins each time the module runs; leaves finding it to the finders that follow.

    It stays among the finders, since who asks for a module need not import it then, or may import it again.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        following = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(fullname, path, target) for finder in following if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


class _StandIn:
    """Stands for a configuration class among AutoConfig's until it is used."""

    def __init__(self, family: str) -> None:
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(pruned_model_class(self._family).config_class, name)


def pruned_model_class(family: str) -> Any:
    """The model class of a pruned family; imports transformers' families, and registers all of ours.

    Args:
        family: one of :data:`FAMILIES`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from ffprune_env.modeling.modeling_ffprune import PRUNED_MODELS

    for model in PRUNED_MODELS.values():
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)
    return PRUNED_MODELS[family]


def _register(configuration_auto: ModuleType) -> None:
    for family in FAMILIES:
        configuration_auto.CONFIG_MAPPING.register(PREFIX + family, _StandIn(family), exist_ok=True)
    _name_as_pruned(configuration_auto.PreTrainedConfig)


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
