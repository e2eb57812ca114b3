"""evaluate/tables.py on tiny models: what it measures, goes on with, prints, writes, and refuses."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import pytest
from conftest import load_script

from ffprune_env.comparison import measuring
from ffprune_env.comparison.paper_tables.contents import OURS
from ffprune_env.evaluators.zero_shot import TaskResult, ZeroShot
from ffprune_env.evaluators.zero_shot_tasks import TASKS
from ffprune_env.methods.warm_start import warm_name


@pytest.fixture
def tables(monkeypatch, tiny_folder, text_file, tmp_path, capsys):
    """Runs the script on a tiny model with a tiny budget: its exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "250")
    module = load_script("evaluate/tables.py")
    flags = {
        "--models": (tiny_folder,), "--text": text_file, "--out": tmp_path / "out", "--seq-len": 64,
        "--search-windows": 2, "--final-windows": 2, "--calibration-windows": 4, "--test-seq-len": 64,
        "--test-windows": 4, "--dtype": "float32", "--evaluations": 40,
    }  # fmt: skip

    def run(*words, **changes):
        settings = flags | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        listed = [(name, *(value if isinstance(value, tuple) else (value,))) for name, value in settings.items()]
        monkeypatch.setattr(sys, "argv", ["tables.py", *(str(x) for one in listed for x in one), *map(str, words)])
        code = module.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    run.module, run.out, run.model = module, tmp_path / "out", tiny_folder
    return run


def stat(folder):
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for path in folder.rglob("*.json")
        if "table-" not in path.name
    }


def shown(tables, number):
    """Rows of the table, as it was written."""
    content = json.loads((tables.out / f"table-{number}.json").read_text())
    return {row[0]["text"] + " " + row[1]["text"]: row for one in content["shown"] for row in one["rows"]}


def test_the_fourth_table_warm_starts_goes_on_and_measures_nothing_twice(tables, monkeypatch):
    code, out, err = tables("--table", 4)
    assert (code, err) == (0, "")
    folder = tables.out / tables.model.name
    names = {path.name for path in (folder / "cells").iterdir()}
    ours, warm = f"{OURS}-s20-seed0.json", f"{warm_name(OURS)}-s30-seed0.json"
    assert {"slicegpt-s20.json", "flap-bias-s30.json", ours, warm} <= names
    assert f"{OURS}-s30-seed0.json" not in names
    first, second = (json.loads((folder / "cells" / name).read_text()) for name in (ours, warm))
    assert second["settings"]["warm"] == {"method": OURS, "sparsity": 0.2, "share": 0.15}
    assert 0 < second["evaluations"] <= 0.15 * 40 < first["evaluations"] <= 40
    assert (folder / "policies" / f"{OURS}-s20-seed0" / "checkpoints" / "policy.safetensors").exists()
    row = shown(tables, 4)["Ours (Calib), warm-started 30 %"]
    assert row[2]["detail"].endswith(" more")
    assert row[5]["text"] == f"{second['candidates']}"
    assert second["candidates"] > second["evaluations"]  # the paper's curriculum begins with few windows
    assert row[6]["text"] == f"{second['calibrated_test_ppl']:.2f}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert second["machine"] == {name: manifest[name] for name in ("device", "devices", "threads", "hardware")}
    assert "Table 4. Cost of the search" in out
    before = stat(tables.out)

    def no_ranking(*args, **settings):
        raise AssertionError("nothing is missing, so nothing is ranked")

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "build_evaluator", no_ranking)
        assert tables("--table", 4)[0] == 0
    assert stat(tables.out) == before
    (folder / "cells" / warm).unlink()
    assert tables("--table", 4)[0] == 0
    again = json.loads((folder / "cells" / warm).read_text())
    untimed = {"seconds": 0, "calibration_seconds": 0}
    assert again | untimed == second | untimed
    changed = {path for path, at in stat(tables.out).items() if before.get(path) != at}
    assert {path.name for path in changed} == {warm, "policy.json"}


def test_models_stand_beside_each_other_and_tables_share_cells(tables, save_tiny, capsys):
    other = save_tiny("opt")
    capsys.readouterr()
    code, out, err = tables("--table", 3, models=(tables.model, other))
    assert (code, err) == (0, "")
    before = stat(tables.out)
    rows = shown(tables, 3)
    assert list(rows) == ["dense 0 %", "Calib. 20 %", "Search 20 %", "Search + Calib. 20 %"]
    cells = [
        json.loads((tables.out / model.name / "cells" / f"{OURS}-s20-seed0.json").read_text())
        for model in (tables.model, other)
    ]
    assert [x["text"] for x in rows["Search 20 %"][2:]] == [f"{cell['test_ppl']:.2f}" for cell in cells]
    assert tables("--table", 2)[0] == 0
    after = stat(tables.out)
    assert before.items() <= after.items()
    assert shown(tables, 2)["Ours 20 %"][2]["text"] == rows["Search 20 %"][2]["text"]
    # What cannot be had is said in a line, and the others are shown.
    code, out, err = tables("--table", 3, models=(tables.model, "nowhere/at-all"))
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "nowhere/at-all: " in err
    assert rows["Search 20 %"][2]["text"] in out
    assert stat(tables.out) == after


def test_zero_shot_is_asked_of_models_calibrated_on_both_texts(tables, text_file, monkeypatch, tmp_path):
    asked = []

    def stub(model, tokenizer, tasks, limit, batch_size):
        asked.append(batch_size)
        return ZeroShot({task: TaskResult(0.5, 0.1, None, None, limit, "acc") for task in TASKS})

    other = tmp_path / "others.txt"
    other.write_text("\n".join(f"other {i} is {3 * i + 1}" for i in range(2000)))
    monkeypatch.setattr(tables.module, "open_tasks", lambda data_dir: nullcontext(dict.fromkeys(TASKS)))
    monkeypatch.setattr(tables.module, "score_tasks", stub)
    words = ("--table", 1, "--limit", 7, "--other-text", other)
    code, _, err = tables(*words)
    assert (code, err) == (0, "")
    assert len(asked) == 2 + 6  # the dense model with each text, and six rows
    assert all(entry["text"] == "50.00" for row in shown(tables, 1).values() for entry in row[1:])
    on_other = tables.out / f"{tables.model.name}-on-others"
    assert [path.name for path in (on_other / "cells").iterdir()] == [f"{OURS}-s20-seed0.json"]
    settings = json.loads((on_other / "settings.json").read_text())
    assert settings["calibration_text"] == str(other)
    assert json.loads((tables.out / tables.model.name / "settings.json").read_text())["calibration_text"] is None
    assert tables(*words, "--batch-size", 3)[0] == 0  # figures do not depend on it
    assert len(asked) == 8
    assert tables(*words, "--seeds", 2, "--batch-size", 3)[0] == 0
    assert asked == [None] * 8 + [3] * 3  # of evolution and, with each text, of ours the second seed


def test_a_report_of_what_there_is_loads_nothing(tables, monkeypatch):
    code, out, _ = tables("--table", 3, "--no-measure")
    assert (code, "nothing was measured" in out) == (0, True)
    assert not tables.out.exists()
    assert tables("--table", 3)[0] == 0

    def no_model(*args, **settings):
        raise AssertionError("no model is needed")

    monkeypatch.setattr(tables.module.Args, "load_named", no_model)
    code, out, _ = tables("--table", 2, "--no-measure")
    assert code == 0
    assert shown(tables, 2)["Ours 20 %"][2]["text"] != "–"
    assert shown(tables, 2)["Ours 30 %"][2]["text"] == "–"


def test_a_dry_run_says_what_it_takes_and_loads_nothing(tables, monkeypatch):
    def no_model(*args, **settings):
        raise AssertionError("no model is needed")

    monkeypatch.setattr(tables.module.Args, "load_named", no_model)
    names = ("smollm2-135m", "llama-7b", "llama-2-7b", "llama-2-70b", "mistral-7b", "opt-125m", "opt-1.3b", "opt-2.7b")
    for number in (1, 2, 3, 4):
        code, out, err = tables("--table", number, "--dry-run", models=names)
        assert (code, err) == (0, "")
        for name in names:
            assert any(line.split()[:1] == [name] for line in out.splitlines())
        assert "2 · parameters · tokens operations at --tflops 400" in " ".join(out.split())
        assert "68,976,648,192" in out
    assert not tables.out.exists()
    code, _, err = tables("--table", 2, "--dry-run", models=("gpt-5",))
    assert code == 2
    (line,) = err.splitlines()
    assert "the shape of model 'gpt-5' is not known here; known are smollm2-135m" in line


def test_flags_begin_at_the_paper_s_protocol(tables):
    args = tables.module.read_flags(tables.module.Args, None, ["--table", "2"], tables.module.DEFAULTS)
    assert (args.criterion, args.calibration, args.reward_model, args.channels_per_group) == (
        "wanda",
        "ridge",
        "cut",
        1,
    )
    assert (args.evaluations, args.test_windows, str(args.out)) == (1000, None, "runs/tables")
    compare = load_script("evaluate/compare.py").Args()
    assert set(args.shared("x")) == set(compare.shared())  # so that evaluate/compare.py can add to the folder


@pytest.mark.parametrize(
    "words",
    [
        ("--table", 1, "--calibration-text", "wikitext2"),
        ("--table", 1, "--text", "c4", "--calibration-text", "wikitext2"),  # what is searched on is in neither row
        ("--table", 2, "--calibration-text", "c4"),  # it has one row of ours
    ],
)
def test_rows_that_are_calibrated_on_two_texts_are_taken_whatever_is_searched_on(tables, words):
    code, out, err = tables(*words, "--no-measure")
    assert (code, err, "nothing was measured" in out) == (0, "", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--table", 5), "--table"),
        (("--table", 1, "--models"), "--models takes at least one name"),
        (("--table", 2, "--seeds", 0), "--seeds must be at least 1, got 0"),
        (("--table", 2, "--evaluations", 0), "--evaluations must be at least 1, got 0"),
        (("--table", 2, "--patience", 3), "leave out --patience"),
        (("--table", 2, "--models", "a/x", "b/x"), "two of --models end in the same name"),
        (("--table", 2, "--tflops", 0), "--tflops must be positive"),
        (("--table", 2, "--text", "nothing.txt"), "no such file"),
        (
            ("--table", 1, "--calibration-text", "c4"),
            "both are c4: give another --other-text, or another --calibration",
        ),
        (
            ("--table", 1, "--text", "wikitext2", "--other-text", "wikitext2"),
            "both are wikitext2: give another --other",
        ),
        (
            ("--table", 1, "--models", "smollm2-135m", "llama-7b", "--text", "auto", "--other-text", "wikitext2"),
            "ours calibrated on two texts, and of llama-7b both are wikitext2",
        ),
    ],
)
def test_bad_input_gets_one_line(tables, capsys, words, message):
    try:
        code, _, err = tables(*words)
    except SystemExit as stop:
        code, err = stop.code, capsys.readouterr().err
    assert code == 2
    (line,) = err.strip().splitlines()
    assert message in line
