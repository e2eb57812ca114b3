"""Every flag is declared once, whichever scripts have it."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import load_script

from ffprune_env.cli.flag_groups import JsonFlags, RepeatFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import NamedFlags
from ffprune_env.cli.text_flags import WindowsFlags

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "evaluate").glob("*.py"), *(ROOT / "train").glob("*.py")])
# What is no flag, but a word without a name; and what has another name on the command line.
FIRST_WORDS = {"measured", "pruned", "file", "runs", "studied", "of", "kind", "to", "compared"}


def classes_of(files) -> Iterator[tuple[str, ast.ClassDef]]:
    """Where a class is, and what it is."""
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                yield f"{file.relative_to(ROOT)}: {node.name}", node


def declared(flags: ast.ClassDef) -> list[str]:
    return [node.target.id for node in flags.body if isinstance(node, ast.AnnAssign)]


def bases(flags: ast.ClassDef) -> list[str]:
    return [base.id for base in flags.bases]


@functools.cache
def library() -> dict[str, tuple[str, ast.ClassDef]]:
    return {node.name: (where, node) for where, node in classes_of((ROOT / "ffprune_env").rglob("*.py"))}


def declarations(scripts) -> dict[str, list[str]]:
    """Of every flag of these scripts, the classes that declare it."""
    found: dict[str, set[str]] = defaultdict(set)
    for where, args in classes_of(scripts):
        waiting = [(where, args)] if args.name == "Args" else []
        while waiting:
            where, flags = waiting.pop()
            waiting += [library()[name] for name in bases(flags)]
            for name in declared(flags):
                found[name].add(where)
    return {name: sorted(places) for name, places in found.items()}


def test_no_flag_is_declared_twice():
    found = declarations(SCRIPTS)
    assert len(found) > 70
    assert len({place for places in found.values() for place in places}) > 20
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_script_makes_a_console_for_errors_or_a_handler_of_its_own(script):
    text = script.read_text(encoding="utf-8")
    assert not [
        word for word in ("stderr=True", "RichHandler", "basicConfig", "bold red", "import yaml") if word in text
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_explains_all_its_flags(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stop:
        load_script(str(script.relative_to(ROOT))).main()
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "(default: " in said or "(required)" in said
    for name in set(declarations([script])) - FIRST_WORDS:
        assert f"--{name.replace('_', '-')}" in said


def test_a_comparison_does_not_offer_flags_of_one_search(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate/compare.py", "--help"])
    with pytest.raises(SystemExit):
        load_script("evaluate/compare.py").main()
    said = capsys.readouterr().out
    assert re.search(r"--evaluations \S*INT", said)
    assert "(default: 96)" in said
    offered = set(re.findall(r"^\W{0,4}(--[a-z-]+)", said, re.MULTILINE))
    assert {"--evaluations", "--sparsity", "--seq-len", "--model"} <= offered
    assert not {"--rollout", "--learning-rate", "--init", "--preset", "--workers", "--resume", "--config"} & offered


def test_a_script_begins_where_it_says_and_needs_what_it_needed():
    defaults = {"seq_len": 2048, "seeds": 3}

    @dataclass(frozen=True)
    class Flags(WindowsFlags, RepeatFlags, NamedFlags, JsonFlags):
        pass

    found = read_flags(Flags, None, ["name", "--windows", "2"], defaults)
    assert (found.measured, found.seq_len, found.seeds, found.windows) == ("name", 2048, 3, 2)
    assert read_flags(Flags, None, ["name"]).seq_len == 1024
    with pytest.raises(SystemExit):
        read_flags(Flags, None, [], defaults)
