"""Flags of a script from its dataclass, by tyro; what is wrong with them is said in one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar, cast

import tyro

from ffprune_env.budget.budget import Budget
from ffprune_env.budget.sparsity_range import Sparsity, SparsityRange, parse_sparsity
from ffprune_env.cli.commands import as_called
from ffprune_env.cli.consoles import fail
from ffprune_env.cli.help_texts import with_help
from ffprune_env.evaluators.objectives.settings import RewardText, parse_words

T = TypeVar("T")

_FRAME = "│╭╮╰╯ "
_RULE = re.compile("[─-]*")
_FLAG = re.compile(r"(--[a-z][a-z-]*)[ ,].*")
_SUGGESTIONS = 3


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _sparsity(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Sparsity] | None:
    """One number, several, or ``low:high``; a dataclass in a union would else be a command of its own."""
    if type_info.type != Sparsity:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="{FLOAT [FLOAT ...]|LOW:HIGH}",
        instance_from_str=parse_sparsity,
        is_instance=lambda x: isinstance(x, float | tuple | SparsityRange),
        str_from_instance=lambda x: [str(at) for at in x] if isinstance(x, tuple) else [str(x)],
    )


@_REGISTRY.primitive_rule
def _budget(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Budget | None] | None:
    """A measure and an amount, two words."""
    if type_info.type != Budget | None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="MEASURE AMOUNT",
        instance_from_str=Budget.parse,
        is_instance=lambda x: x is None or isinstance(x, Budget),
        str_from_instance=lambda x: ["None"] if x is None else x.words,
    )


@_REGISTRY.primitive_rule
def _reward(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[RewardText] | None:
    """One term, or several with weights."""
    if type_info.type != RewardText:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="{ppl|kl|tasks[:NAMES]|FILE|MODULE:FUNCTION}[=WEIGHT] ...",
        instance_from_str=parse_words,
        is_instance=lambda x: isinstance(x, str),
        str_from_instance=lambda x: shlex.split(x),
    )


def read_flags(
    flags: type[T],
    description: str | None,
    argv: Sequence[str] | None = None,
    default: T | Mapping[str, Any] | None = None,
) -> T:
    """Reads flags from the command line.

    Args:
        flags: a dataclass; its fields are the flags, their docstrings the help.
        description: what ``--help`` begins with; it names scripts as in a checkout.
        argv: the words after the script's name; None takes those that it was called with.
        default: an instance that holds the defaults, or by name those that are not as in the dataclass: a group of
            flags is declared once, and a script may begin elsewhere than others. None takes those of the dataclass.

    Raises:
        SystemExit: with code 2 where a flag or value is not allowed, after one line on stderr; with code 0 after
            ``--help``.
    """
    if isinstance(default, Mapping):
        default = _instance(flags, default)
    said = io.StringIO()
    about = as_called(description or "", sys.argv[0]) or None
    try:
        with contextlib.redirect_stderr(said):
            shown = with_help(flags)
            begun = None if default is None else shown(**_values(default))
            found = tyro.cli(shown, args=argv, default=begun, description=about, registry=_REGISTRY)
    except BrokenPipeError:  # ``--help | head``: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except SystemExit as stop:
        if stop.code:
            fail(f"{sentence_of(said.getvalue())}; {sys.argv[0]} --help lists all flags", 2)
        raise
    sys.stderr.write(said.getvalue())  # warnings of tyro's, if any
    return settled(flags(**_values(found)))


def settled(flags: T) -> T:
    """Flags with what one says of another that was left to itself, where the dataclass has a method for that."""
    method = getattr(flags, "settled", None)
    return flags if method is None else cast("T", method())


def _instance(flags: type[T], changes: Mapping[str, Any]) -> T:
    """The defaults of a dataclass with changes; what has none is still to be given on the command line."""
    needed = (x for x in fields(cast("Any", flags)) if x.default is MISSING and x.default_factory is MISSING)
    return flags(**{**{x.name: tyro.MISSING for x in needed}, **changes})


def _values(flags: object) -> dict[str, Any]:
    """Values of the fields of a dataclass by name, as they are."""
    return {x.name: getattr(flags, x.name) for x in fields(cast("Any", flags))}


def sentence_of(box: str) -> str:
    """What tyro says in a box up to the first rule or empty line in it, and the flags that it suggests.

    Args:
        box: a title, lines and rules, in a frame where the terminal can draw one; what is no box is taken as it is.

    Returns:
        One sentence, without a full stop.
    """
    lines = [line.strip(_FRAME) for line in box.splitlines()[1:]]
    if not any(lines):
        return " ".join(box.split())
    end = next((i for i, line in enumerate(lines) if i and _RULE.fullmatch(line)), len(lines))
    said = " ".join(line for line in lines[:end] if not _RULE.fullmatch(line))
    meant = [match[1] for line in lines[end:] if (match := _FLAG.fullmatch(line))]
    sentence = said.rstrip(".").removeprefix("Error parsing ")
    sentence = sentence[:1].lower() + sentence[1:]
    # A value that is not allowed comes with the help of its flag.
    if not meant or meant[0] in sentence:
        return sentence
    return f"{sentence}; perhaps {' or '.join(meant[:_SUGGESTIONS])}"
