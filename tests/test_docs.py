"""README, docs/ and examples/ say what is so: examples run, commands parse, and what is named is there."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import load_script

from ffprune_env.cli.commands import COMMANDS
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import parse_settings
from ffprune_env.comparison.rebuilt import REBUILDERS
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.build import load_evaluator
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.making import make_prune_bandit
from ffprune_env.methods.registry import METHODS
from ffprune_env.pruning.criteria import CRITERIA
from ffprune_env.search.presets import RUN_PRESETS
from ffprune_env.search.settings import SearchSettings

ROOT = Path(__file__).parents[1]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
EXAMPLES = [
    pytest.param(code, id=f"{name}-{i}")
    for name, text in PAGES.items()
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
]
SCRIPTS = sorted([*(ROOT / "examples").glob("*.py")])
#: Flags of every program, of pip, of TensorBoard and of git.
FOREIGN = {"help", "version", "no-deps", "logdir", "error-unmatch"}
LONGEST_README = 200
LONGEST_EXAMPLE = 40


@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_there_are_examples():
    assert len(EXAMPLES) >= 5
    assert len(SCRIPTS) == 3


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_example_script(file, tiny_folder, tmp_path, monkeypatch, capsys):
    arguments = [str(tiny_folder), str(tmp_path / "pruned")] if file.name == "library.py" else []
    monkeypatch.setattr(sys, "argv", [str(file), *arguments])
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_EXAMPLE


def test_the_readme_is_short_enough_to_be_finished():
    assert len(PAGES["README.md"].splitlines()) <= LONGEST_README


def test_the_output_shown_is_that_of_a_run():
    shown = PAGES["docs/results.md"].split("<!-- make run -->")[1].split("```")[1]
    assert all(word in shown for word in ("dense", "uniform", "ffn-only", "searched"))
    assert SearchSettings().total == 0
    assert "no search was made (--evaluations makes one)" in " ".join(shown.split())


@cache
def flags_of(script: str) -> type | None:
    """The dataclass of a script's flags."""
    found = getattr(load_script(script), "Args", None)
    return found if dataclasses.is_dataclass(found) else None


def script_of(words: list[str]) -> str | None:
    """The script that a command line starts; None if it starts none."""
    if words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py"):
        return words[1]
    if words[:1] == ["ffprune"]:
        return COMMANDS[words[1]].script
    return None


def commands() -> list[Any]:
    """Every command line of ours in a shell example, with the script that it starts."""
    found = []
    for name, text in PAGES.items():
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
                script = script_of(words)
                if script is not None and script.split("/")[0] != "examples":
                    found.append(pytest.param(script, words[2:], id=f"{name}: {' '.join(words)}"))
    return found


@pytest.mark.parametrize(("script", "words"), commands())
def test_a_command_is_one(script, words):
    args = flags_of(script)
    assert args is not None
    fields = {field.name for field in dataclasses.fields(args)}
    if script == "train/ppo.py":  # it reads files that these name, and refuses some combinations
        told = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
        if not told & {"config", "resume"}:
            found = parse_settings(words, args, RUN_PRESETS)
            if "<" not in found.init:  # nor are the questions and functions of a reader here
                dataclasses.replace(found, reward="ppl").require_allowed()
        assert {name.removeprefix("no_") if name not in fields else name for name in told} <= fields
        return
    read_flags(args, None, words)


def test_there_are_commands():
    assert len(commands()) >= 20


@cache
def flags() -> frozenset[str]:
    """Every flag that there is, and those of other programs that are named."""
    known = {"type"} | FOREIGN
    for script in (*(ROOT / "train").glob("*.py"), *(ROOT / "evaluate").glob("*.py")):
        args = flags_of(str(script.relative_to(ROOT)))
        known |= {field.name.replace("_", "-") for field in dataclasses.fields(args)} if args is not None else set()
    return frozenset(known)


def unknown_flags(text: str) -> set[str]:
    """Flags that a text names and that there are not."""
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+[a-z])", text))
    return {flag for flag in named if not {flag, flag.removeprefix("no-")} & flags()}


@pytest.mark.parametrize("name", PAGES)
def test_every_flag_named_exists(name):
    text = PAGES[name].replace("`--no-sequential`", "")  # of an earlier commit, and said so
    assert not unknown_flags(text)


def test_every_flag_that_the_code_names_exists():
    folders = (ROOT / name for name in ("ffprune_env", "train", "evaluate", "examples"))
    sources = {file: file.read_text(encoding="utf-8") for folder in folders for file in folder.rglob("*.py")}
    wrong = {str(file): unknown for file, source in sources.items() if (unknown := unknown_flags(source))}
    assert not wrong


@pytest.mark.parametrize("name", PAGES)
def test_every_file_named_exists(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target
    rooms = "|".join(sorted({file.parent.name for file in (ROOT / "ffprune_env").glob("*/__init__.py")}))
    roots = f"ffprune_env|train|evaluate|examples|tests|docs|{rooms}"
    for path in re.findall(rf"(?<![\w/.-])((?:{roots})/[\w/]+\.(?:py|md|png))\b", PAGES[name]):
        assert (ROOT / path).exists() or (ROOT / "ffprune_env" / path).exists(), path


def anchors(text: str) -> set[str]:
    """What links to the headings of a page end in."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_target_of_make_exists(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", PAGES[name], flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_method_and_every_criterion_is_described():
    rows = re.findall(r"^\| (`[^|]*) \|", PAGES["docs/comparison.md"], flags=re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == {*METHODS, *REBUILDERS}
    ranking = PAGES["docs/design.md"].split("### 4.3")[1].split("### 4.4")[0]
    assert set(re.findall(r"^\| `([\w+]+)` \|", ranking, flags=re.MULTILINE)) == set(CRITERIA)


def test_the_defaults_of_the_environment_are_those_of_the_code():
    code: dict[str, Any] = {}
    for function in (load_evaluator, PruneBanditEnv.__init__, make_prune_bandit):
        code |= {name: x.default for name, x in inspect.signature(function).parameters.items()}
    code |= dataclasses.asdict(EvaluatorSettings())
    table = PAGES["docs/environment.md"].split("| argument |")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    told = {
        name.strip(" `"): value.strip(" `")
        for names, values in rows
        for name, value in zip(names.split(","), values.split(","), strict=True)
    }
    assert told == {name: str(code[name]) for name in told}
    assert told.keys() >= dataclasses.asdict(EvaluatorSettings()).keys()


def test_every_section_of_the_design_that_is_cited_exists():
    sections = set(re.findall(r"^#+ ([\d.]+?)\.? ", PAGES["docs/design.md"], flags=re.MULTILINE))
    cited = set()
    for file in (ROOT / "ffprune_env").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        cited |= set(re.findall(r"docs/design\.md, (\d(?:\.\d)?)", source))
        assert not re.search(r"\(\d\.\d\)|design \d|of the design|\(design,", source), f"{file}: cite docs/design.md"
    assert len(cited) >= 5
    assert cited <= sections


def test_imports_run_one_way_through_the_rooms():
    table = PAGES["docs/architecture.md"].split("| room |")[1].split("\n\n")[0]
    rooms = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", table, flags=re.MULTILINE)
    package = ROOT / "ffprune_env"
    assert {file.parent.name for file in package.glob("*/__init__.py")} <= set(rooms)
    for place, room in enumerate(rooms):
        files = (package / room).rglob("*.py") if (package / room).is_dir() else [package / f"{room}.py"]
        for file in files:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ffprune_env."):
                    imported = str(node.module).split(".")[1]
                    assert imported in rooms[: place + 1], f"{file} imports {node.module}"
