"""Every Python example of the README runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import load_script

from ffprune_env.cli.settings import parse_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=[f"example{i}" for i in range(len(EXAMPLES))])
def test_example(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_output_shown_is_that_of_a_run():
    shown = README.split("<!-- make run -->")[1].split("```")[1]
    assert all(word in shown for word in ("dense", "uniform", "ffn-only", "searched", "evaluations in"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


def test_every_flag_named_exists():
    files = [
        *(ROOT / "train").glob("*.py"),
        *(ROOT / "evaluate").glob("*.py"),
        ROOT / "ffprune_env/search/settings.py",
    ]
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    for flag in set(re.findall(r"`?--([a-z][a-z-]+)", README)) - {"help", "logdir", "config", "resume", "no-deps"}:
        field = flag.removeprefix("no-").replace("-", "_")
        assert f"    {field}:" in sources or f'name="{field}"' in sources, flag


def test_every_file_named_exists():
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`((?:ffprune_env|train|evaluate)/[\w/]+\.py)`", README):
        assert (ROOT / name).is_file(), name
    targets = re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_every_command_parses():
    ppo = load_script("train/ppo.py")
    whole_lines = README.replace("\\\n", " ")
    commands = re.findall(r"^python train/ppo\.py(.*?)(?:#.*)?$", whole_lines, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        if "--config" not in command and "--resume" not in command:
            parse_settings(shlex.split(command), ppo.PRESETS)
