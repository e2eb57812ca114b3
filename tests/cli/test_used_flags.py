"""Flags that nothing would look at are refused, and those that something looks at are not."""

from __future__ import annotations

import sys

import pytest

from ffprune_env.budget.sparsity_range import parse_sparsity
from ffprune_env.search.unheeded import UsedBy, require_used


def test_only_what_somebody_asked_for_can_be_in_vain():
    flags = (UsedBy(("patience", "rollout"), False, "no search"), UsedBy(("lora",), True, ""))
    require_used({"lora", "seed"}, flags)
    with pytest.raises(ValueError, match=r"^nothing looks at --rollout: no search$"):
        require_used({"rollout", "lora"}, flags)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "--patience 2 --workers 2",
            "--patience --workers: from --init fisher-iterated a search",
        ),
        ("--no-fresh-windows", "--fresh-windows: from --init fisher-iterated a search"),
        ("--no-normalize-advantage --no-ramp-windows", "--ramp-windows --normalize-advantage: from --init"),
        ("--no-save-memory", "--save-memory: it says how to train: add --recover"),
        ("--init ffn-only --clip-range 0.1", "--clip-range: of one pass over a rollout nothing is clipped"),
        ("--init ffn-only --no-ramp-windows --k 1 --t0 2", "--k --t0: neither sparsity nor windows are raised"),
        ("--init ffn-only --no-fresh-windows --pool-windows 9", "--pool-windows: windows are not drawn anew"),
        ("--init ffn-only --sparsity 0.1 0.2 --finalists 2", "--finalists: of several sparsities a function is chosen"),
        ("--init ffn-only --sparsity 0.1:0.2 --finalists 2", "--finalists: of several sparsities a function is chosen"),
        ("--init ffn-only --init-steps 4", "--init-steps: --init ffn-only is taken as it is"),
        ("--calibration none --reward-model cut --ridge 0.1", "--ridge: nothing is re-fitted with --calibration none"),
        ("--data-dir here", "--data-dir: no questions are asked"),
        ("--lora 4 --recover-minutes 1", "--recover-minutes --lora: it says how to train: add --recover"),
        ("--limit-windows 9", "--limit-windows: it is for --max-loss"),
        ("--clock cpu", "--clock: it is for a --budget of"),
        ("--budget parameters 20% --budget-server vllm", "--budget-server: it is for a --budget of"),
    ],
)
def test_a_run_refuses_what_it_would_not_look_at(ppo_script, monkeypatch, capsys, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train/ppo.py", *words.split()])
    assert ppo_script.main() == 2
    err = " ".join(capsys.readouterr().err.split())
    assert f"nothing looks at {says}" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--sparsity 0", "--sparsity takes numbers between 0 and 1, got 0; 0.2 removes 20 %"),
        ("--sparsity 20", "--sparsity takes numbers between 0 and 1, got 20; 0.2 removes 20 %"),
        ("--sparsity 0.9", "--sparsity 0.9 needs an --a-min of 0.1 or less, got 0.2"),
        ("--sparsity 0.1 --a-max 0.8", "--sparsity 0.1 needs an --a-max of 0.9 or more, got 0.8"),
        ("--a-min 0.5 --a-max 0.4", "0 ≤ a_min < a_max ≤ 1: got 0.5 and 0.4"),
        ("--quick --preset paper", "--quick is --preset quick: leave out that or --preset paper"),
    ],
)
def test_what_arithmetic_can_refuse_waits_for_no_model(ppo_script, monkeypatch, capsys, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train/ppo.py", *words.split()])
    assert ppo_script.main() == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_sparsity_in_percent_is_told_how_it_is_written():
    with pytest.raises(ValueError, match=r"a number, several, or low:high, got '30%'; 30 % is 0\.3"):
        parse_sparsity(["30%"])


def test_the_config_of_a_run_and_another_preset_contradict_each_other(ppo_script, monkeypatch, capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("preset: default\nsparsity: 0.3\n")
    monkeypatch.setattr(sys, "argv", ["train/ppo.py", "--config", str(tmp_path / "config.yaml"), "--preset", "paper"])
    assert ppo_script.main() == 2
    assert "is of a run with --preset default" in " ".join(capsys.readouterr().err.split())
