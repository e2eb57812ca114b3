"""Flags, presets and saved configs: what wins, and what is said in one line of those that are wrong."""

from __future__ import annotations

import re
import sys

import pytest
from conftest import load_script
from tiny_runs import run_main

from ffprune_env.cli.flags import sentence_of
from ffprune_env.cli.settings import parse_settings


def parse(ppo, words):
    return parse_settings(words, ppo.Args, ppo.RUN_PRESETS)


def test_flags_beat_the_config_and_the_preset(ppo_script, tmp_path):
    (tmp_path / "config.yaml").write_text("sparsity: 0.4\nseed: 3\nsave_model: false\n")
    args = parse(ppo_script, ["--config", str(tmp_path / "config.yaml"), "--seed", "4", "--preset=paper"])
    assert (args.sparsity, args.seed, args.save_model, args.mapping) == (0.4, 4, False, "paper")


def test_a_config_from_before_a_setting_means_what_was_done_then(ppo_script, tmp_path):
    (tmp_path / "config.yaml").write_text("sparsity: 0.4\ncalibrated: true\nridge: 0.01\ntimesteps: 96\n")
    for flags in (["--config", str(tmp_path / "config.yaml")], ["--resume", str(tmp_path)]):
        args = parse(ppo_script, flags)
        assert (args.channels_per_group, args.calibration, args.evaluations) == (1, "ridge", 96)
    args = parse(ppo_script, ["--config", str(tmp_path / "config.yaml"), "--calibration", "sequential"])
    assert args.calibration == "sequential"
    assert parse(ppo_script, []).channels_per_group == 32


def test_the_paper_preset_is_the_papers(ppo_script):
    args = parse(ppo_script, ["--preset", "paper", "--evaluations", "300"])
    assert (args.learning_rate, args.clip_range, args.k, args.t0) == (1e-4, 0.2, 0.01, 500)
    assert (args.mapping, args.criterion, args.evaluations) == ("paper", "wanda", 300)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sparsty", "0.3"], "error: unrecognized options: --sparsty, 0.3; perhaps --sparsity; "),
        (["--sparsity", "much"], "error: --sparsity: a number, several, or low:high, got 'much'; "),
        (
            ["--mapping", "middle"],
            "error: invalid choice 'middle' for argument '--mapping'.*'paper', 'greedy', 'water.*; ",
        ),
        (["--preset", "none"], "error: invalid choice 'none' for argument '--preset'.*'default', 'quick', 'paper'.*; "),
        (["--search-windows"], "error: missing value for argument '--search-windows'"),
    ],
)
def test_flags_that_do_not_parse_get_one_line_and_exit_with_2(ppo_script, arguments, says, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(ppo_script, arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(says, line)
    assert line.endswith("--help lists all flags")


@pytest.mark.parametrize("drawn", [True, False])
def test_what_a_box_says_comes_first_and_then_what_it_suggests(drawn):
    """As a terminal that can draw a frame gets it, and as another one does."""
    said = ["Unrecognized options: --seed, 3, and", "--x"]
    rest = ["Perhaps you meant:", "    --seeds INT", "        how many times each search is run"]
    if drawn:
        lines = ["╭─ Title ─╮", *(f"│ {line} │" for line in (*said, "─" * 8, *rest)), "╰─────────╯"]
    else:
        lines = [" Title ", " --------- ", *(f"  {line}  " for line in (*said, "-" * 8, *rest)), "   "]
    assert sentence_of("\n".join(lines)) == "unrecognized options: --seed, 3, and --x; perhaps --seeds"


def test_what_is_no_box_is_kept():
    assert sentence_of("  no box   at all\n") == "no box at all"


def test_scripts_say_what_is_missing_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate/perplexity.py"])
    with pytest.raises(SystemExit) as stop:
        load_script("evaluate/perplexity.py").main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: missing from evaluate/perplexity.py: STR")


@pytest.mark.parametrize("content", ["sparsity: much", "no_such_setting: 1"])
def test_a_config_with_wrong_settings_exits_with_2(ppo_script, tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    try:
        code = run_main(ppo_script, ["--config", str(tmp_path / "config.yaml")])
    except SystemExit as stop:
        code = stop.code
    assert code == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('"run=../../x": true', "names 'run=../../x', which is no setting"),
        ("sparsity: [0.2, --run, ../../x]", "has sparsity \\[0.2, '--run', '../../x'\\]"),
        ("help: true", "names 'help', which is no setting"),
        ("a: &x [*x]", "names 'a', which is no setting"),
        ("5: 3", "names '5', which is no setting"),
        ('!!python/object/apply:os.mkdir ["ran"]', "could not determine a constructor for the tag"),
        ('seed: !!python/object/apply:os.mkdir ["ran"]', "could not determine a constructor for the tag"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flag", ["--config", "--resume"])
def test_a_config_from_elsewhere_holds_settings_and_nothing_else(
    ppo_script, tmp_path, flag, content, says, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    assert run_main(ppo_script, [flag, tmp_path / "config.yaml" if flag == "--config" else tmp_path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_config_does_not_say_where_a_run_goes_nor_which_cluster_runs_its_code(ppo_script, tmp_path, caplog):
    config = tmp_path / "config.yaml"
    config.write_text("run: ../../x\nworkers: 2\nray_address: ray://elsewhere:10001\n")
    read = parse(ppo_script, ["--config", str(config)])
    assert (read.run, read.workers, read.ray_address) == (None, 2, None)
    assert "says ray_address: it is not taken from there" in caplog.text
    for flags in (["--config", str(config)], ["--resume", str(tmp_path)]):
        assert parse(ppo_script, [*flags, "--ray-address", "mine"]).ray_address == "mine"


@pytest.mark.parametrize("content", ["just text", "{", "- a\n- b", None])
def test_a_config_that_is_none_gets_one_line(ppo_script, tmp_path, content, capsys):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    assert run_main(ppo_script, ["--config", str(tmp_path / "config.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
