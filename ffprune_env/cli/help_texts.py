"""Help of flags: what is written below a field of a dataclass, as one paragraph, whatever lines it has there."""

from __future__ import annotations

from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import docstring_parser
import tyro

T = TypeVar("T")

_DEFAULTS = ("default", "default_factory")


def with_help(flags: type[T]) -> type[T]:
    """A dataclass like another one, whose fields carry their help with them.

    tyro reads the docstrings of fields itself, but keeps the line breaks of all but the first line.

    Args:
        flags: a frozen dataclass.

    Returns:
        A subclass of it with the same fields in the same order.
    """
    told = help_of(flags)
    hints = get_type_hints(flags, include_extras=True)
    shown: list[tuple[str, Any, Any]] = []
    for x in fields(cast("Any", flags)):
        helped: Any = Annotated[hints[x.name], tyro.conf.arg(help=told.get(x.name))]
        begins = {name: value for name in _DEFAULTS if (value := getattr(x, name)) is not MISSING}
        shown.append((x.name, helped, field(**begins, kw_only=x.kw_only)))
    return make_dataclass(flags.__name__, shown, bases=(flags,), frozen=True)


def help_of(flags: type) -> dict[str, str]:
    """The docstrings of the fields of a dataclass and of those that it is made of, by name, each in one line.

    Args:
        flags: a dataclass.
    """
    told: dict[str, str] = {}
    for base in reversed(flags.__mro__):
        if is_dataclass(base):
            params = docstring_parser.parse_from_object(base).params
            told |= {x.arg_name: " ".join(x.description.split()) for x in params if x.description}
    return told
