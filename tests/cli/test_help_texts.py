"""Help of flags: every flag has some, and it is wrapped to the terminal and not as the source is."""

from __future__ import annotations

import dataclasses
import re

import pytest
from conftest import load_script

from ffprune_env.cli.commands import COMMANDS
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.help_texts import help_of, with_help


@dataclasses.dataclass(frozen=True)
class Shared:
    """What others are made of."""

    depth: int = 3
    """how deep"""
    names: tuple[str, ...] = dataclasses.field(default_factory=lambda: ("a", "b"))
    """lines of the source
    end here and
    there (docs/x.md)"""


@dataclasses.dataclass(frozen=True)
class Flags(Shared):
    """Flags of nobody."""

    depth: int = 4
    """how deep, told
    anew"""
    file: str = "x"
    """a file"""


@pytest.mark.parametrize("script", sorted({command.script for command in COMMANDS.values()}))
def test_every_flag_of_every_script_has_its_help_in_one_line(script):
    args = load_script(script).Args
    told = help_of(args)
    for field in dataclasses.fields(args):
        assert told[field.name]
        assert told[field.name] == " ".join(told[field.name].split())


def test_what_is_shown_has_no_line_breaks_of_the_source(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        read_flags(Flags, "Nothing.", ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(r"--depth INT +how deep, told anew \(default: 4\)", shown)
    assert re.search(r"--names .* lines of the source end here and there \(docs/x.md\) \(default: a b\)", shown)


def test_what_is_read_is_of_the_class_that_was_asked_for():
    found = read_flags(Flags, None, ["--depth", "7", "--names", "c"], Flags(file="y"))
    assert found == Flags(depth=7, names=("c",), file="y")
    assert type(found) is Flags
    assert [x.name for x in dataclasses.fields(with_help(Flags))] == [x.name for x in dataclasses.fields(Flags)]
