"""Families of transformers: measured, pruned and written right, or refused; a fault is an error."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from conftest import load_script

from ffprune_env.export import trial

SCRIPT = "evaluate/families.py"


@pytest.mark.parametrize(
    ("family", "done", "reason"),
    [
        ("llama", 5, ""),
        ("opt", 5, ""),
        ("granite", 5, ""),
        ("olmo2", 5, ""),
        ("gemma3", 2, "a pruned gemma3 cannot be written yet"),
        ("llama4", 2, "a pruned llama4_text cannot be written yet"),
        ("diffllama", 2, "a pruned diffllama cannot be written yet"),  # its attention stays whole
        ("phi3", 5, ""),  # its FFN is cut as two views of one matrix
        ("bitnet", 1, "cannot be pruned: reordering the channels of model.layers.0.mlp"),
        ("bert", 1, "cannot be pruned: no list of decoder layers"),
        ("xlnet", 0, "cannot be measured: a token changes the logits of those before it"),
        ("dbrx", 0, "not tried, no tiny model can be made"),
    ],
)
def test_a_family_is_right_or_refused(family, done, reason):
    outcome = trial.examine(family)
    assert outcome.fault == ""
    steps = (outcome.measured, outcome.searched, outcome.written, outcome.generates, outcome.again)
    assert steps == (True,) * done + (False,) * (5 - done)
    assert outcome.reason.startswith(reason)


def main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    code = load_script(SCRIPT).main()
    return code, capsys.readouterr()


def test_a_fault_is_found_and_is_an_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(trial, "perplexity", lambda model, windows: 123.0)
    code, said = main(monkeypatch, capsys, "--families", "llama", "--markdown", tmp_path / "models.md")
    assert code == 1
    assert "FAULT: the dense perplexity is 123.0000, and should be" in said.out
    assert "1 neither right nor refused" in said.out
    assert "| llama | no | no | no | no | no | FAULT" in (tmp_path / "models.md").read_text()


@pytest.mark.parametrize("what", ["pruned", "rank"])
def test_faults_of_pruning_are_found(what, monkeypatch):
    prunable = trial.PrunableModel
    right = getattr(prunable, what)

    def pruned(self, kept, calibration=None):
        return right(self, kept * 0 + 3, calibration)

    def rank(self, scores):
        right(self, scores)
        self.layouts[1].inputs[0].weight.data.mul_(-1)

    prepare = trial.prepare

    def after(wrapped, windows):  # the probe has seen nothing wrong by then
        monkeypatch.setattr(prunable, what, {"pruned": pruned, "rank": rank}[what])
        return prepare(wrapped, windows)

    monkeypatch.setattr(trial, "prepare", after)
    fault = trial.examine("llama").fault
    assert fault.startswith("perplexity after ranking" if what == "rank" else "perplexity of the pruned model")


def test_a_family_that_takes_too_long_or_dies_is_a_fault(monkeypatch, tmp_path):
    script = load_script(SCRIPT)
    monkeypatch.setattr(script, "examine", lambda family: script.sys.exit(3))
    assert script.in_a_process("llama", 20, tmp_path).fault == "its process died with exit code 3"
    monkeypatch.setattr(script, "examine", lambda family: time.sleep(9))
    assert script.in_a_process("llama", 0.2, tmp_path).fault == "no answer in 0.2 s"


def test_an_unknown_family_is_refused(monkeypatch, capsys):
    code, said = main(monkeypatch, capsys, "--families", "llama", "llamo")
    assert code == 2
    assert said.err.strip().endswith("has no causal family 'llamo'")


@pytest.mark.slow
def test_every_family_is_right_or_refused(monkeypatch, capsys):
    code, said = main(monkeypatch, capsys)
    assert code == 0, said.out
    assert " 0 neither right nor refused" in said.out


def test_the_table_in_the_documentation_has_no_fault():
    table = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert {f"| {family} " for family in ("llama", "gemma3", "diffllama")} <= {row[: row.index("|", 2)] for row in rows}
    assert "FAULT" not in table
