"""The frontier of files: measured once, kept, drawn as picture and page; without llama.cpp what there is."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import get_args

import pytest
import tiny_runs
from conftest import byte_tokenizer, load_script
from matplotlib.image import imread

from ffprune_env.export.gguf.kinds import GgufType
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.frontier import ALONE, Point, frontier
from ffprune_env.run.frontier_files import FilePoint, KeptFiles, Pace, Source, best_of, measured_on, sources_of
from ffprune_env.run.frontier_files_plot import files_plot
from ffprune_env.run.frontier_plot import frontier_plot
from ffprune_env.run.frontier_rows import COLUMNS, rows_of
from ffprune_env.run.strict_json import as_measured, strict_json

SCRIPT = "evaluate/frontier.py"
MERGES = [("e", "n"), ("1", "2")]  # llama.cpp refuses a tokenizer without any


@pytest.fixture(scope="module")
def written(ppo_script, text_file, tmp_path_factory):
    """A run over a range, with models at two sparsities; heads are such that llama.cpp can quantize them."""
    import torch
    from conftest import LLAMA_LIKE
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    settings = {**LLAMA_LIKE, "head_dim": 32, "num_key_value_heads": 2, "intermediate_size": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    byte_tokenizer(MERGES).save_pretrained(folder)
    run = folder / "run"
    flags = tiny_runs.settings(folder, text_file, run, sparsity="0.1:0.5", evaluations=0, init="ffn-only")
    assert tiny_runs.run_main(ppo_script, [*flags, "--no-baselines", "--calibration", "ridge"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["allocate", str(run), "--sparsity", "0.25", "0.45"])
        assert load_script("evaluate/allocate.py").main() == 0
    return run


@pytest.fixture
def own(written, tmp_path):
    """A copy to write to; times of files stay what they are."""
    return shutil.copytree(written, tmp_path / "own", ignore=shutil.ignore_patterns(".lock", "tb"))


@pytest.fixture
def run_frontier(monkeypatch, capsys):
    """Runs evaluate/frontier.py; returns its exit code, what it printed, and its errors."""
    script = load_script(SCRIPT)

    def run(*words):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, words)])
        code = script.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def files_in(run):
    return {(x["model"], x["kind"]): x for x in json.loads((run / "frontier.json").read_text())["files"]}


def without_llama_cpp(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "cyllama" else find(name, *more)
    )


class Page(HTMLParser):
    """What a page links to, and how often it has what tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[:1] != "#"]


def test_files_are_measured_once_and_drawn(own, run_frontier):
    pytest.importorskip("cyllama")
    code, said, _ = run_frontier(own, "--rounds", 1, "--types", "f16", "q8_0")
    assert code == 0
    found = files_in(own)
    assert set(found) == {(model, kind) for model in ("dense", "s25", "s45") for kind in ("f16", "q8_0")}
    for kind in ("f16", "q8_0"):
        sizes = [found[model, kind]["size"] for model in ("dense", "s25", "s45")]
        assert sizes == sorted(sizes, reverse=True)
    for model in ("dense", "s25", "s45"):
        assert found[model, "q8_0"]["size"] < found[model, "f16"]["size"]
        assert found[model, "q8_0"]["ppl"] == pytest.approx(found[model, "f16"]["ppl"], rel=0.03)
    # llama.cpp's perplexity on the same text is that of the run.
    for part, model in (("s25", "s25"), ("s45", "s45")):
        ours = json.loads((own / part / "best.json").read_text())["saved"]["test_ppl"]
        assert found[model, "f16"]["ppl"] == pytest.approx(ours, rel=0.01)
    assert found["dense", "f16"]["decode"]["tokens"] > 0
    assert imread(own / "plots" / "frontier.png").shape[1] > 1000
    page = Page((own / "frontier.html").read_text())
    assert page.links == []
    assert "svg" in page.tags
    assert "script" not in page.tags
    assert page.tags.count("tr") == 7
    assert "Q8_0" in said
    before = (own / "frontier.json").read_bytes()
    code, said, _ = run_frontier(own, "--rounds", 1, "--types", "f16", "q8_0", "--no-files")
    assert (code, (own / "frontier.json").read_bytes() == before) == (0, True)
    assert said.count("searched") == 7  # what the run measured: five sparsities, and two that were asked for later
    assert "Q8_0" not in said


def test_figures_whose_decodes_contain_their_prompts_are_not_told(ended):
    """As earlier versions timed them."""
    now = measured_on("y", 4, 5)
    before = {name: value for name, value in now.items() if name != "decode"}
    KeptFiles(RunFolder(ended), before, {"machine": "one"}).add(replace(POINTS[0], made_of="x"))
    for asked, n in ((before, 1), (now, 0)):
        kept = KeptFiles(RunFolder(ended), asked, None).of([Source(POINTS[0].model, 0.0, "x")], [POINTS[0].kind])
        assert len(kept) == n


@pytest.fixture
def alone(ended):
    """A search for one sparsity alone, of the same model and text as the run that has ended."""
    alone = ended / "alone"
    alone.mkdir()
    for folder, sparsity in ((ended, "[0.2, 0.5]"), (alone, "0.3")):
        (folder / "config.yaml").write_text(f"model: m\ntext: words\nsparsity: {sparsity}\n")
        RunFolder(folder).write_json("identity.json", {"weights": "x", "test text": "y"})
    best_json(alone, sparsity=0.3, test_ppl=10.5)
    return alone


def test_without_llama_cpp_the_run_is_drawn_and_what_is_beside_it(ended, alone, run_frontier, monkeypatch, tmp_path):
    without_llama_cpp(monkeypatch)
    image = tmp_path / "x.svg"
    code, said, _ = run_frontier(ended, "--beside", alone, "--image", image)
    assert (code, said.count(ALONE)) == (0, 1)
    # Files that were measured elsewhere are drawn, and of fewer windows nothing can stand beside them.
    kept = KeptFiles(RunFolder(ended), measured_on("y", 4, 5), {"machine": "one"})
    kept.add(replace(POINTS[0], made_of="x"))
    code, _, error = run_frontier(ended, "--beside", alone, "--image", image)
    assert (code, "beside files on 4 windows of it: add --no-files" in error) == (2, True)


def test_what_cannot_stand_beside_files_is_refused_before_any_is_measured(ended, alone, run_frontier):
    pytest.importorskip("cyllama")
    code, _, error = run_frontier(ended, "--beside", alone)
    assert (code, "beside files on 4 windows of it: add --no-files" in error) == (2, True)


def test_with_files_that_were_measured_no_files_draws_the_run_and_what_is_beside_it(
    ended, alone, run_frontier, tmp_path
):
    """And where files are drawn, of fewer windows, nothing can stand beside them."""
    kept = KeptFiles(RunFolder(ended), measured_on("y", 4, 5), {"machine": "one"})
    kept.add(replace(POINTS[0], made_of="x"))
    image = tmp_path / "x.svg"
    code, said, _ = run_frontier(ended, "--beside", alone, "--no-files", "--image", image)
    assert code == 0
    assert said.count(ALONE) == 1
    assert {line.split("│")[1].strip() for line in said.splitlines() if line.count("│") > 4} == {
        "dense", "searched", ALONE,
    }  # fmt: skip
    code, _, error = run_frontier(ended, "--beside", alone)
    assert code == 2
    (line,) = error.splitlines()
    assert "--beside marks what was measured on all test text, beside files on 4 windows of it: add --no-files" in line


@pytest.mark.parametrize(
    ("run", "other", "said"),
    [
        ("calibration: ridge", "calibration: none", "alone was made with --calibration none, and .* with ridge: put"),
        ("ridge: 0.01", "ridge: 0.1", "with --ridge 0.1, and .* with 0.01: put"),
        ("ridge_scale: relative", "ridge_scale: absolute", "with --ridge-scale absolute, and .* with relative: put"),
        ("openings: 24", "openings: 0", "with --openings 0, and .* with 24: put"),
        ("calibration: none\nridge: 0.1", "calibration: none\nridge: 0.2", None),
        ("ridge: 0.1\nopenings: 0", "ridge: 0.1", None),  # of before there were any
    ],
)
def test_what_is_re_fitted_otherwise_does_not_stand_beside_a_run(ended, run, other, said):
    alone = ended / "alone"
    alone.mkdir()
    for folder, sparsity, more in ((ended, "[0.2, 0.5]", run), (alone, "0.3", other)):
        (folder / "config.yaml").write_text(f"model: m\ntext: words\nsparsity: {sparsity}\n{more}\n")
        RunFolder(folder).write_json("identity.json", {"weights": "x", "test text": "y"})
    best_json(alone, sparsity=0.3)
    if said is None:
        assert [x.sparsity for x in frontier(ended, [alone]) if x.policy == ALONE] == [0.3]
        return
    with pytest.raises(ValueError, match=said) as refused:
        frontier(ended, [alone])
    assert "\n" not in str(refused.value)


def test_the_same_command_goes_on(own, run_frontier, monkeypatch):
    """What was measured is not measured again, what is missing or changed is; other rounds are another measurement."""
    pytest.importorskip("cyllama")
    from ffprune_env.run import frontier_files

    measured = []
    pace = Pace(1.0, 1.0, 1.0, 1.0)

    def measure(source, kind, file, *others):
        measured.append((source.model, kind))
        assert file.stat().st_size > 1000
        return FilePoint(source.model, source.sparsity, kind, 1, 2.0, pace, pace, source.made_of)

    monkeypatch.setattr(frontier_files, "_measured", measure)
    words = (own, "--rounds", 1, "--types", "f16")
    assert run_frontier(*words)[0] == 0
    assert measured == [("dense", "f16"), ("s25", "f16"), ("s45", "f16")]
    measured.clear()
    assert run_frontier(*words)[0] == 0
    assert measured == []
    weights = own / "s25" / "model" / "model.safetensors"
    shutil.copyfile(weights, own / "copy")
    (own / "copy").replace(weights)
    assert run_frontier(*words)[0] == 0
    assert measured == [("s25", "f16")]
    measured.clear()
    assert run_frontier(own, "--rounds", 2, "--types", "f16")[0] == 0
    assert len(measured) == 3


def test_without_llama_cpp_one_line_says_so_and_what_there_is_is_drawn(own, run_frontier, monkeypatch):
    without_llama_cpp(monkeypatch)
    code, said, err = run_frontier(own, "--image", own / "x.png")
    assert code == 0
    assert "measuring files needs llama.cpp: pip install cyllama" in said + err
    assert "searched" in said
    assert (own / "x.png").stat().st_size > 1000
    assert not (own / "frontier.json").exists()
    assert Page((own / "frontier.html").read_text()).tags.count("svg") == 1


def test_bad_input_gets_one_line(own, run_frontier, tmp_path):
    for words, message in (
        ((own, "--rounds", 0), "--rounds must be at least 1, got 0"),
        ((own, "--file-windows", 0), "--file-windows must be at least 1, got 0"),
        ((own, "--image", tmp_path / "nowhere" / "x.png"), "there is no folder"),
        ((own, "--html", tmp_path / "nowhere" / "x.html"), "there is no folder"),
        ((tmp_path,), "is not a run, it has no config.yaml"),
    ):
        code, _, err = run_frontier(*words)
        assert code == 2
        (line,) = err.splitlines()
        assert message in line


def point(model, kind, size, ppl, speed=1.0, sparsity=0.0):
    pace = Pace(100 * speed, speed, speed, speed)
    return FilePoint(model, sparsity, kind, size, ppl, pace, pace, "")


POINTS = [
    point("dense", "f16", 400, 10.0), point("dense", "q8_0", 200, 10.1, 1.4), point("s20", "f16", 300, 11.0, 1.3, 0.2),
    point("s20", "q8_0", 150, 11.1, 1.8, 0.2), point("s40", "f16", 220, 14.0, 1.6, 0.4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("measured_on", "by", "there"),
    [
        ({"text": "a"}, {"machine": "one"}, 5),
        ({"text": "a"}, None, 5),  # who only looks
        ({"text": "b"}, {"machine": "one"}, 0),
        ({"text": "a"}, {"machine": "another"}, 0),
    ],
)
def test_figures_of_other_text_or_another_machine_are_dropped(measured_on, by, there, tmp_path):
    """Sizes are the same everywhere, speeds and perplexities of llama.cpp are not."""
    kept = KeptFiles(RunFolder(tmp_path), {"text": "a"}, {"machine": "one"})
    for one in POINTS:
        kept.add(one)
    again = KeptFiles(RunFolder(tmp_path), measured_on, by)
    names = {(one.model, one.sparsity) for one in POINTS}
    sources = [Source(model, sparsity, "") for model, sparsity in sorted(names)]
    assert len(again.of(sources, ["f16", "q8_0"])) == there


def test_the_best_are_those_that_nothing_beats_in_both():
    assert best_of(POINTS, lambda x: x.size) == {("dense", "f16"), ("dense", "q8_0"), ("s20", "q8_0")}
    assert best_of(POINTS, lambda x: -x.decode.ratio) == {("dense", "f16"), ("dense", "q8_0"), ("s20", "q8_0")}
    assert best_of(POINTS[:1] * 2, lambda x: x.size) == {("dense", "f16")}


def test_rows_say_what_was_measured():
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows_of(POINTS)]
    assert [row["loss"] for row in rows] == ["+0.0%", "+1.0%", "+10.0%", "+11.0%", "+40.0%"]
    assert [row["the best of"] for row in rows] == ["size, speed", "size, speed", "", "size, speed", ""]
    assert rows[3]["decode ×"] == "1.80"
    assert {row[COLUMNS.index("loss")] for row in rows_of(POINTS[1:])} == {""}


def test_the_picture_has_a_line_for_each_type_from_the_dense_model_on():
    figure = files_plot(POINTS, "tiny", "words")
    left, right = figure.axes
    for axes in (left, right):
        lines = {str(line.get_label()): line.get_ydata() for line in axes.get_lines()}
        assert list(lines["F16"]) == [10.0, 11.0, 14.0]
        assert list(lines["Q8_0"]) == [10.1, 11.1]
    assert [text.get_text() for text in left.texts] == ["dense F16", "0.2", "0.4", "dense Q8_0", "0.2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["F16", "Q8_0"]


def test_what_the_run_measured_itself_is_drawn_beside():
    measured = [Point("dense", 0.0, 380.0, 10.0), Point("chosen", 0.2, 290.0, 11.0), Point(ALONE, 0.2, 290.0, 10.9)]
    figure = files_plot(POINTS, "tiny", "words", measured)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["F16", "Q8_0", "as the run measured them", "a search for one σ alone"]


def test_every_type_of_file_has_a_line_that_looks_like_no_other():
    points = [point("dense", kind, 400 - i, 10.0 + i) for i, kind in enumerate(get_args(GgufType))]
    figure = files_plot(points, "tiny", "words")
    looks = {str(x.get_label()): (x.get_color(), x.get_marker()) for x in figure.axes[1].get_lines()}
    named = {name: look for name, look in looks.items() if not name.startswith("_")}
    assert list(named) == [kind.upper() for kind in get_args(GgufType)]
    assert len(set(named.values())) == len(named)
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width


COLLAPSED = [*POINTS, point("s50", "q8_0", 100, math.inf, 2.0, 0.5)]


@pytest.mark.parametrize("content", [{"a": 1.0, "b": None}, {"a": math.inf, "b": [{"c": None, "d": [1.0, math.inf]}]}])
def test_figures_are_read_as_they_were_written(content):
    assert as_measured(json.loads(strict_json(content))) == content


def test_a_file_that_collapsed_is_kept_and_told_and_not_drawn(tmp_path):
    kept = KeptFiles(RunFolder(tmp_path), {}, {})
    for one in COLLAPSED:
        kept.add(one)
    found = KeptFiles(RunFolder(tmp_path), {}, {}).of([Source("dense", 0.0, ""), Source("s50", 0.5, "")], ["q8_0"])
    assert found == [COLLAPSED[1], COLLAPSED[-1]]
    row = dict(zip(COLUMNS, rows_of(COLLAPSED)[-1], strict=True))
    assert (row["PPL"], row["loss"], row["the best of"]) == ("inf", "", "")
    assert {x[COLUMNS.index("loss")] for x in rows_of([point("dense", "f16", 400, math.inf), *POINTS[1:]])} == {""}
    beside = [Point("dense", 0.0, 380.0, 10.0), Point("chosen", 0.2, 290.0, 11.0), Point("chosen", 0.5, 90.0, math.inf)]
    left, _ = files_plot(COLLAPSED, "tiny", "words", beside).axes
    lines = {str(line.get_label()): list(line.get_ydata()) for line in left.get_lines()}
    assert lines["Q8_0"] == [10.1, 11.1]
    assert lines["as the run measured them"] == [10.0, 11.0]
    assert left.get_yscale() == "linear"
    assert files_plot(COLLAPSED[-1:], "tiny", "words").legends == []


def best_json(folder, sparsity=None, **chosen):
    """A best.json as a search leaves it, of a dense and a chosen model; the folder says σ if nobody does."""
    sparsity = float(folder.name[1:]) / 100 if sparsity is None else sparsity
    policies = {"dense": {"params": 2**20, "test_ppl": 10.0}, "chosen": {"params": 2**19, "test_ppl": 11.0} | chosen}
    RunFolder(folder).write_json("best.json", {"target_sparsity": sparsity, **policies})


@pytest.fixture
def ended(tmp_path):
    """A run over two sparsities that ended; the second model collapsed."""
    (tmp_path / "config.yaml").write_text("sparsity: [0.2, 0.5]\n")
    for part, chosen in (("s20", {}), ("s50", {"params": 2**18, "test_ppl": math.inf})):
        (tmp_path / part).mkdir()
        best_json(tmp_path / part, **chosen)
    return tmp_path


def test_a_model_that_collapsed_is_told_and_not_drawn(ended):
    points = frontier(ended)
    assert [(x.policy, x.sparsity, x.test_ppl) for x in points] == [
        ("dense", 0.0, 10.0), ("chosen", 0.2, 11.0), ("chosen", 0.5, math.inf),
    ]  # fmt: skip
    (axes,) = frontier_plot(points, "tiny", "words").axes
    assert axes.get_yscale() == "linear"
    drawn = {float(y) for line in axes.get_lines() for y in line.get_ydata()}
    assert drawn == {10.0, 11.0}
    assert load_script(SCRIPT).measured_rows(points)[-1] == ("searched", "0.5", "0.5", "inf")
    (axes,) = frontier_plot(points[-1:], "tiny", "words").axes  # nothing is left
    assert not any(line.get_ydata().size for line in axes.get_lines())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has not ended: there is no .*s20/best.json; go on with it by --resume"),
        ("{}", "has not ended: .*s20/best.json does not say what it chose; go on with it by --resume"),
        ('{"target_sparsity": 0.2, "calibration": {"dense": {}}}', "s20/best.json does not say what it chose"),
        ("", "s20/best.json is damaged: Expecting value"),
        ("[]", "s20/best.json is damaged: an object is needed"),
    ],
)
def test_a_run_that_has_not_ended_is_named(ended, run_frontier, content, message):
    file = ended / "s20" / "best.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    code, _, err = run_frontier(ended)
    (line,) = err.splitlines()
    assert code == 2
    assert re.search(message, line)


@pytest.mark.parametrize("limit", ["max_loss: 5%", "max_ppl: 12.5", "min_reward: 0.9"])
def test_a_search_with_a_limit_has_the_models_that_it_left(ended, limit):
    """None of the sparsities of its range is reported: those are where it may look."""
    (ended / "config.yaml").write_text(f"sparsity: {{low: 0.1, high: 0.5}}\n{limit}\n")
    best = json.loads((ended / "s20" / "best.json").read_text())
    RunFolder(ended / "s20").write_json("best.json", {**best, "limit": {"asked": "--max-loss 5%"}})
    found = {(x.policy, x.sparsity): x.later for x in frontier(ended)}
    assert found == {("dense", 0.0): False, ("chosen", 0.2): False, ("chosen", 0.5): True}
    for part in ("s20", "s50"):
        (ended / part / "best.json").unlink()
    with pytest.raises(ValueError, match=r"holds no s\*/best\.json: it has not ended, .*; or no model meets its limit"):
        frontier(ended)


def test_what_processes_measure_at_once_is_all_kept(tmp_path):
    """Each begins with what there is, and another one may add to it meanwhile; nobody drops what that measured."""
    run, way = RunFolder(tmp_path), {"rounds": 1}
    sources = [Source(name, 0.0, "") for name in ("dense", "s20", "s40")]
    one, two = (KeptFiles(run, way, {"machine": "one"}) for _ in range(2))
    for kept, point in ((one, POINTS[0]), (two, POINTS[2]), (one, POINTS[4])):
        kept.add(point)
    assert len(KeptFiles(run, way, None).of(sources, ["f16"])) == 3
    assert [x.model for x in one.of(sources, ["f16"])] == ["dense", "s20", "s40"]
    otherwise = KeptFiles(run, {"rounds": 2}, {"machine": "one"})
    otherwise.add(POINTS[0])  # its own replace those of before
    with pytest.raises(ValueError, match=r"another process measures files of .* in other rounds"):
        one.add(POINTS[2])
    assert len(KeptFiles(run, {"rounds": 2}, None).of(sources, ["f16"])) == 1
    assert run._claim.is_free is False
    (tmp_path / "frontier.json").unlink()
    assert run._claim.is_free  # a lock is no run


def calibrated_json(folder, kind, asked="sequential"):
    """A best.json of a model that is calibrated, as was asked for or otherwise."""
    sparsity = float(folder.name[1:]) / 100
    final = {name: {"params": n, "test_ppl": ppl, "calibration": how, "calibrated": True} for name, n, ppl, how in (
        ("dense", 2**20, 10.0, asked), ("uniform", 2**19, 12.0, asked), ("chosen", 2**19, 11.0, kind),
    )}  # fmt: skip
    asked_for = {} if asked is None else {"calibration_asked": asked}
    about = {"target_sparsity": sparsity, **asked_for, "calibration": final}
    RunFolder(folder).write_json("best.json", {**about, "chosen": {}, "dense": {}})


def test_a_model_that_is_not_calibrated_as_was_asked_for_is_marked(tmp_path, run_frontier, monkeypatch):
    """As in all other tables: it does not compare with those that are."""
    without_llama_cpp(monkeypatch)
    (tmp_path / "config.yaml").write_text("model: m\ntext: words\nsparsity: [0.2, 0.5]\ncalibration: sequential\n")
    (tmp_path / "identity.json").write_text('{"weights": "x", "test text": "x"}')
    for part, kind in (("s20", "sequential"), ("s50", "ridge")):
        (tmp_path / part).mkdir()
        calibrated_json(tmp_path / part, kind)
    points = frontier(tmp_path)
    assert [(x.policy, x.sparsity) for x in points if x.fell_back] == [("chosen", 0.5)]
    (axes,) = frontier_plot(points, "tiny", "words").axes
    (mark,) = (text for text in axes.texts if text.get_text() == "‡")
    assert mark.xy == (2**19 * 2 / 2**20, 11.0)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["‡ calibrated by Eqs. 6-7 alone"]
    code, said, _ = run_frontier(tmp_path, "--no-files")
    assert code == 0
    assert [line.split("│")[1].strip() for line in said.splitlines() if "0.5" in line] == ["uniform", "searched ‡"]
    for shown in (said, (tmp_path / "frontier.html").read_text()):
        assert shown.count("searched ‡") == 1
        assert "‡ calibrated by Eqs. 6-7 alone, not in sequence as asked for" in " ".join(shown.split())
    (left, _) = files_plot(POINTS, "tiny", "words", points, marked={"s40"}).axes
    assert [text.get_text() for text in left.texts].count("‡") == 2
    assert [row[0] for row in rows_of(POINTS, {"s40"})] == ["dense", "dense", "pruned", "pruned", "pruned ‡"]
    calibrated_json(tmp_path / "s50", "ridge", asked=None)  # of before: the settings of the run say it
    assert [x.fell_back for x in frontier(tmp_path) if x.policy == "chosen"] == [False, True]
    (tmp_path / "s50" / "model").mkdir()
    (tmp_path / "s50" / "model" / "config.json").write_text("{}")
    assert [(x.model, x.fell_back) for x in sources_of(RunFolder(tmp_path))] == [("dense", False), ("s50", True)]


def test_where_all_are_calibrated_alike_nothing_is_marked(ended):
    points = frontier(ended)
    assert not any(x.fell_back for x in points)
    figure = frontier_plot(points, "tiny", "words")
    assert "‡" not in [text.get_text() for text in figure.axes[0].texts]
    assert figure.axes[0].get_legend() is None
