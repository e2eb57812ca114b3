"""FastForward Pruning: finds how much of each layer of a language model to keep.

Importing this package registers ``ffprune/PruneBandit-v0`` and ``ffprune/PruneBanditSurrogate-v0`` with Gymnasium, and
nothing more is imported: the public names, which ``__init__.pyi`` lists, are imported with the libraries they need when
they are first used. Transformers' Auto classes know pruned models if transformers was imported before this package or
before such a name was used; :func:`register_auto_classes` tells them at any time.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import lazy_loader

from ffprune_env.modeling.auto_classes import register_if_imported

__version__ = "0.2.0.dev0"

_load, _, __all__ = lazy_loader.attach_stub(__name__, __file__)

gym.register(
    id="ffprune/PruneBandit-v0",
    entry_point="ffprune_env.making:make_prune_bandit",
    vector_entry_point="ffprune_env.making:make_prune_bandits",
)
gym.register(
    id="ffprune/PruneBanditSurrogate-v0",
    entry_point="ffprune_env.making:make_surrogate_bandit",
    vector_entry_point="ffprune_env.making:make_surrogate_bandits",
)
register_if_imported()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The room called search is a function, too: whoever imports a module of it must find a package here.
    value = importlib.import_module(f"{__name__}.search") if name == "search" else _load(name)
    register_if_imported()  # the name may have brought transformers along
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
