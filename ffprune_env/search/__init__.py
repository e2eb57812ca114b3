"""The search: its settings, starts, schedule, callbacks, policies and workers.

``ff.search(...)`` is a function, and ``ffprune_env.search`` is this room, of which modules are imported. Under one name
there is one object: so the room can be called, which is all that this file is for.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A package that is a function, too."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """See :func:`ffprune_env.search.search.search`."""
        from ffprune_env.search.search import search

        return search(*arguments, **settings)


sys.modules[__name__].__class__ = _Room
