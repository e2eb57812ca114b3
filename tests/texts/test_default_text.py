"""The text that goes with a model where nobody names one: the paper's for models of the hub, else one that is here."""

from __future__ import annotations

import pytest
from conftest import load_script, tiny_model
from tiny_runs import run_main, settings

import ffprune_env as ff
from ffprune_env.cli import model_flags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import parse_settings
from ffprune_env.evaluators import build
from ffprune_env.lm.model_names import HUB_MODELS
from ffprune_env.making import make_prune_bandit
from ffprune_env.search import search as search_module
from ffprune_env.texts.default_text import text_for


class StoppedError(Exception):
    """What is wanted is known."""


@pytest.fixture
def asked(monkeypatch):
    """What the library takes for model and text, as far as it gets before anything is loaded."""
    found = []

    def note(*words, **others):
        found.append(words)
        raise StoppedError

    return found, note


def test_known_names_of_the_hub_take_the_papers_text_and_all_others_the_one_that_is_here(monkeypatch, tmp_path):
    assert {text_for(name) for name in HUB_MODELS} == {"wikitext2"}
    for other in ("smollm2-135m", "facebook/opt-125m", "somebody/model", "runs/x/model", "path/to/opt-125m"):
        assert text_for(other) == "python-docs"
    assert text_for("opt-125m", "c4") == "c4"
    assert text_for("smollm2-135m", "wikitext2") == "wikitext2"
    (tmp_path / "opt-125m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert text_for("opt-125m") == "python-docs"  # which is that folder, and nobody's but its maker's


@pytest.mark.parametrize("path", [
    "train/ppo.py", "evaluate/compare.py", "evaluate/windows.py", "evaluate/preset_study.py", "evaluate/bench.py",
    "evaluate/perplexity.py",
])  # fmt: skip
def test_every_script_that_takes_a_model_and_a_text_follows(path):
    script = load_script(path)

    def text(model, *words):
        named = [model] if path == "evaluate/perplexity.py" else ["--model", model]
        return read_flags(script.Args, None, [*named, *words], getattr(script, "DEFAULTS", None)).text

    assert (text("opt-1.3b"), text("smollm2-135m")) == ("wikitext2", "python-docs")
    assert text("opt-1.3b", "--text", "python-docs") == "python-docs"
    assert text("smollm2-135m", "--text", "words.txt") == "words.txt"


def test_what_a_config_says_stays_whatever_the_model(ppo_script, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("text: python-docs\nsparsity: 0.4\n")
    parsed = parse_settings(["--config", str(config), "--model", "llama-7b"], ppo_script.Args, ppo_script.RUN_PRESETS)
    assert (parsed.model, parsed.text) == ("llama-7b", "python-docs")
    config.write_text("sparsity: 0.4\n")
    parsed = parse_settings(["--config", str(config), "--model", "llama-7b"], ppo_script.Args, ppo_script.RUN_PRESETS)
    assert parsed.text == "wikitext2"


def test_help_says_how_the_default_comes_about(ppo_script, capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"], ppo_script.Args, ppo_script.RUN_PRESETS)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "auto takes wikitext2 for the known names of the hub" in said
    assert "(default: auto)" in said.split("--text STR")[1].split(" --", 2)[1]


@pytest.mark.parametrize(("model", "text"), [("mistral-7b", "wikitext2"), ("smollm2-135m", "python-docs")])
def test_the_library_takes_the_same(asked, monkeypatch, model, text):
    found, note = asked
    monkeypatch.setattr(search_module, "require_text", note)
    with pytest.raises(StoppedError):
        ff.search(model)
    monkeypatch.setattr(build, "load_evaluator", note)
    with pytest.raises(StoppedError):
        make_prune_bandit(model)
    monkeypatch.undo()
    monkeypatch.setattr(build, "load_model", lambda *names: names)
    monkeypatch.setattr(build, "build_evaluator", note)
    with pytest.raises(StoppedError):
        ff.load_evaluator(model)
    assert found[0] == (text,)
    assert found[1] == (model, text)
    assert text in found[2]


def test_a_model_in_memory_takes_the_text_that_is_here(asked, monkeypatch, tokenizer):
    found, note = asked
    monkeypatch.setattr(search_module, "require_text", note)
    with pytest.raises(StoppedError):
        ff.search(tiny_model("opt"), tokenizer)
    assert found == [("python-docs",)]


def test_a_text_that_cannot_be_had_says_which_can(ppo_script, monkeypatch, tiny_folder, text_file, tmp_path, capsys):
    """The model is there, as from the local cache of the hub, and its text is not."""
    monkeypatch.setattr(model_flags, "load_model", lambda name, *others: ff.load_model(str(tiny_folder)))
    flags = settings("opt-125m", text_file, tmp_path / "run")
    del flags[flags.index("--text") : flags.index("--text") + 2]
    capsys.readouterr()
    assert run_main(ppo_script, flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "text wikitext2" in line
    assert "out of reach" in line
    assert "use python-docs or a local .txt" in line
    assert not (tmp_path / "run").exists()
