"""The command ``ffprune``: every script has a name there, and is the same code under it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import ffprune_env as ff
from ffprune_env.cli import main as ffprune
from ffprune_env.cli.commands import COMMANDS, as_called, command_words

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs ``ffprune`` in this process: its exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["ffprune"])
    monkeypatch.setenv("COLUMNS", "300")

    def call(*words):
        try:
            code = ffprune.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_every_script_is_a_command_and_every_command_a_script():
    scripts = {
        path.relative_to(ROOT).as_posix() for name in ("train", "evaluate") for path in (ROOT / name).glob("*.py")
    }
    assert sorted(command.script for command in COMMANDS.values()) == sorted(scripts)
    for name, command in COMMANDS.items():
        assert command.file == ROOT / command.script
        assert name == "search" or name == command.file.stem.replace("_", "-")


def test_no_script_depends_on_where_it_lies():
    for command in COMMANDS.values():
        assert "__file__" not in command.file.read_text(encoding="utf-8")


def test_ffprune_alone_lists_its_commands(run):
    listed = run()
    assert listed == run("--help")
    code, out, err = listed
    assert (code, err) == (0, "")
    for name, command in COMMANDS.items():
        assert re.search(rf"^ +{name} +{re.escape(command.help)} *$", out, flags=re.MULTILINE)
    assert run("--version") == (0, f"ffprune {ff.__version__}\n", "")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("perplexty", "perplexity"), ("compare_runs", "compare-runs"), ("serch", "search"), ("xyz", None)],
)
def test_an_unknown_command_gets_one_line_with_those_it_may_mean(run, word, meant):
    code, out, err = run(word, "--flag")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: there is no command '{word}'; ")
    assert line.endswith("ffprune --help lists all")
    assert (f"perhaps {meant}" in line) if meant else ("perhaps" not in line)


def test_a_script_knows_how_it_was_called(run):
    code, out, _ = run("windows", "--help")
    assert code == 0
    assert "usage: ffprune windows" in out
    assert "ffprune windows --text python-docs" in out
    assert "python evaluate" not in out
    code, _, err = run("windows", "--sample", "3")
    assert code == 2
    assert err.strip().endswith("ffprune windows --help lists all flags")


def test_what_a_script_returns_is_the_exit_code(run, tmp_path):
    code, _, err = run("perplexity", tmp_path / "nothing")
    assert code == 2
    assert err.startswith("error:")


def test_texts_and_command_lines_name_what_was_called():
    text = "python train/ppo.py --sparsity 0.3; python evaluate/compare_runs.py a b"
    assert as_called(text, "train/ppo.py") == text
    assert as_called(text, "ffprune search") == "ffprune search --sparsity 0.3; ffprune compare-runs a b"
    assert command_words(["train/ppo.py", "--seed", "1"]) == ["python", "train/ppo.py", "--seed", "1"]
    assert command_words(["ffprune search", "--seed", "1"]) == ["ffprune", "search", "--seed", "1"]
    assert command_words(["/home/ffprune search/ppo.py"]) == ["python", "/home/ffprune search/ppo.py"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip builds of the checkout."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "-q", "-w", out, ROOT], check=True)
    (file,) = out.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_all_of_the_package_and_nothing_else(wheel):
    assert wheel.name == f"ffprune-{ff.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    package = [path for path in (ROOT / "ffprune_env").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    scripts = {f"ffprune_env/cli/scripts/{command.script}" for command in COMMANDS.values()}
    assert names == {path.relative_to(ROOT).as_posix() for path in package} | scripts
    assert {"ffprune_env/py.typed", "ffprune_env/__init__.pyi"} <= names


@pytest.mark.slow
def test_an_installed_wheel_works_without_the_checkout(wheel, tiny_folder, text_file, tmp_path):
    """Installed into an environment that has the libraries of this one, but not this one's ffprune."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True
    )
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    # As a line of a .pth file and not by PYTHONPATH, so that .pth files there, with the checkout in one, are not read.
    (site / "libraries.pth").write_text("\n".join(libraries))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*words):
        words = [str(word) for word in words]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    program = tmp_path / "env" / "bin" / "ffprune"
    where = call(python, "-c", "import ffprune_env; print(ffprune_env.__file__, ffprune_env.allocate.__name__)")
    assert where.split() == [str(site / "ffprune_env" / "__init__.py"), "allocate"]
    assert "export-gguf" in call(program, "--help")
    assert "usage: ffprune search" in call(program, "search", "--help")
    text = ("--text", text_file, "--windows", "4", "--seq-len", "64", "--json", tmp_path / "x.json")
    assert "PPL" in call(program, "perplexity", tiny_folder, *text)
    assert json.loads((tmp_path / "x.json").read_text())["windows"] == 4
