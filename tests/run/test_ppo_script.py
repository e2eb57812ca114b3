"""train/ppo.py on a tiny model: the files of a run, a replay, Ctrl-C, and what bad input gets."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import LLAMA_LIKE, byte_tokenizer, load_script
from plain import plainly
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

import ffprune_env as ff
from ffprune_env.cli import model_flags
from ffprune_env.cli.settings import parse_settings
from ffprune_env.run import report, saved_model
from ffprune_env.search.saved_policy import Policy
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.window_settings import WindowSettings

SCRIPT = Path(__file__).parents[2] / "train" / "ppo.py"


@pytest.fixture(scope="module")
def ppo():
    return load_script("train/ppo.py")


@pytest.fixture
def flags(tiny_folder, text_file, tmp_path):
    """A search that takes a second."""
    return {
        "--model": tiny_folder, "--text": text_file, "--seq-len": 64, "--search-windows": 2, "--calibration-windows": 2,
        "--curve-windows": 2, "--test-seq-len": 64, "--test-windows": 2, "--evaluations": 8, "--rollout": 4,
        "--final-windows": 2, "--eval-every": 0, "--heads": "single", "--run": tmp_path / "run",
    }  # fmt: skip


@pytest.fixture(scope="module")
def evaluator(tiny_folder, text_file):
    """What those runs measure with, to measure again."""
    sizes = {"seq_len": 64, "search_windows": 2, "final_windows": 2, "curve_windows": 2, "calibration_windows": 2}
    sizes |= {"fresh_windows": False}
    asked = {"ridge": 0.01, "criterion": "surgeon", "calibration": "sequential", "reward_model": "calibrated"}
    return ff.load_evaluator(str(tiny_folder), str(text_file), **plainly(**sizes, **asked))


def argv(flags):
    return [str(word) for pair in flags.items() for word in pair]


def run_main(ppo, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["train/ppo.py", *arguments])
    return ppo.main()


def read_samples(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_a_run_leaves_the_files_of_the_design(ppo, monkeypatch, flags, capsys):
    assert run_main(ppo, monkeypatch, argv(flags)) == 0
    run = flags["--run"]
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tb/")}
    plots = {"plots/learning_curve.png", "plots/retention.png"}
    files = {"config.yaml", "manifest.json", "start.json", "samples.jsonl", "best.json", "checkpoints/policy.zip"}
    files |= {"checkpoints/policy.safetensors", "checkpoints/policy.json", "identity.json", "order.json"}
    files |= {"cost.jsonl", "measured.jsonl"}  # the latter of the start, on the windows of every rollout
    model = {name for name in found if name.startswith("model/")}
    assert found - events - model - {".lock"} == files | plots
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/README.md"} <= model
    assert len(events) == 1
    scalars = set(EventAccumulator(str(run / "tb")).Reload().Tags()["scalars"])
    assert {"final/test_ppl_chosen", "final/search_ppl_uniform", "train/loss", "search_on_2/reward"} <= scalars
    assert "rollout/ep_rew_mean" not in scalars  # SB3's mean over 100 rewards, of one window and of two
    assert b"hparams" in (run / events.pop()).read_bytes()

    samples = read_samples(run)
    assert [sample["step"] for sample in samples] == list(range(8))
    keys = {"target_sparsity", "n_samples", "scores", "kept", "sparsity", "ppl", "dense_ppl", "reward", "seconds"}
    assert all(keys <= set(sample) for sample in samples)
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"versions", "device", "seed", "git_revision", "command", "threads"} <= set(manifest)
    table = capsys.readouterr().out
    assert all(word in table for word in ("dense", "uniform", "ffn-only", "searched", "8 evaluations"))


@pytest.mark.parametrize("apart", [True, False])
def test_what_is_told_to_measure_the_model_gives_the_figure_of_the_run(
    ppo, monkeypatch, flags, capsys, text_file, apart
):
    """Of a test text of its own all of it is tested on, of the text that was searched a part."""
    if apart:
        other = flags["--run"].with_name("test.txt")
        other.write_text("\n".join(f"case {i} has {i * 7} and {i * 11}" for i in range(400)), encoding="utf-8")
        flags["--test-text"] = other
    assert run_main(ppo, monkeypatch, argv(flags | {"--test-windows": None})) == 0
    shown = re.sub(r" +", " ", capsys.readouterr().out)
    (command,) = re.findall(r"measure it: ffprune perplexity (.*)", shown)
    measure = load_script("evaluate/perplexity.py")
    result = flags["--run"] / "result.json"
    words = [*command.split(), "--seq-len", "64", "--json", str(result)]
    monkeypatch.setattr(sys, "argv", ["evaluate/perplexity.py", *words])
    assert measure.main() == 0
    best = json.loads((flags["--run"] / "best.json").read_text())
    assert json.loads(result.read_text())["ppl"] == pytest.approx(best["saved"]["test_ppl"], rel=1e-4)
    assert f"time it: ffprune bench-serving {flags['--run'] / 'model'} --dense {flags['--model']}" in shown


def test_best_json_holds_what_can_be_measured_again(ppo, monkeypatch, flags, evaluator):
    more = ["--batch-size", "1", "--no-fresh-windows", "--finalists", "2"]
    assert run_main(ppo, monkeypatch, [*argv(flags), *more]) == 0
    best = json.loads((flags["--run"] / "best.json").read_text())
    assert (best["target_sparsity"], best["seq_len"], best["text"]) == (0.2, 64, str(flags["--text"]))
    _, tokenizer = ff.load_model(str(flags["--model"]))
    test = ff.load_windows(str(flags["--text"]), tokenizer, "test", 64, 2)
    for name in ("dense", "uniform", "ffn-only", "chosen"):
        kept = np.array(best[name]["kept"])
        final = None if name == "dense" else evaluator.final_calibration(kept)
        for result, calibration in ((best[name], None), (best["calibration"][name], final)):
            assert result["kept"] == best[name]["kept"]
            with evaluator.prunable.pruned(kept, calibration) as model:
                assert result["search_ppl"] == pytest.approx(ff.perplexity(model, evaluator.chosen_on), rel=1e-6)
                assert result["test_ppl"] == pytest.approx(ff.perplexity(model, test), rel=1e-6)
                assert result["params"] == sum(p.numel() for p in model.parameters())
            assert result["sparsity"] == evaluator.prunable.sparsity(kept)
            assert result["calibrated"] is (result is not best[name])
    assert (best["ridge"], best["ridge_raised"], best["sequential"]) == (0.01, evaluator.calibration.raised(), True)
    assert best["dense"]["sparsity"] == 0
    assert all(best[name]["sparsity"] >= 0.2 for name in ("uniform", "ffn-only", "chosen"))
    again = ff.allocate(best["chosen"]["scores"], 0.2, evaluator.units, mapping="waterfill")
    np.testing.assert_array_equal(again.kept, best["chosen"]["kept"])
    # The chosen policy is the best of its finalists on text of their own, calibrated by Eqs. 6-7; among them are the
    # start and the two best samples of those measured on most windows.
    best_samples = sorted(read_samples(flags["--run"]), key=lambda x: (-x["n_samples"], -x["reward"]))[:2]
    start = json.loads((flags["--run"] / "start.json").read_text())["targets"]["0.2"]
    rivals = [ff.allocate(start, 0.2, evaluator.units, mapping="waterfill").kept]
    rivals += [np.array(sample["kept"]) for sample in best_samples] + [np.array(best["ffn-only"]["kept"])]
    for kept in rivals:
        assert evaluator.final_losses(again.kept, 2).mean() <= evaluator.final_losses(kept, 2).mean() + 1e-6
    assert best["windows"] == {"search": 2, "finalists": 2, "curves": 2, "calibration": 2, "test": 2}


def test_the_model_is_written_and_measured_from_disk(ppo, monkeypatch, flags, caplog):
    caplog.set_level("INFO")
    assert run_main(ppo, monkeypatch, [*argv(flags), "--batch-size", "1", "--no-fresh-windows"]) == 0
    best = json.loads((flags["--run"] / "best.json").read_text())
    model, tokenizer = ff.load_model(str(flags["--run"] / "model"))
    test = ff.load_windows(str(flags["--text"]), tokenizer, "test", 64, 2)
    assert best["saved"]["test_ppl"] == ff.perplexity(model, test)
    assert best["saved"]["test_ppl"] == pytest.approx(best["calibration"]["chosen"]["test_ppl"], rel=1e-3)
    assert best["saved"]["kept"] == best["chosen"]["kept"]
    assert "reading back: " in " ".join(caplog.text.split())
    card = (flags["--run"] / "model" / "README.md").read_text()
    assert f"| perplexity, pruned | {best['calibration']['chosen']['test_ppl']:.2f} |" in card
    assert str(flags["--model"].parent) not in card


def test_the_start_looks_at_search_text_alone(ppo, monkeypatch, flags):
    """On calibration text the calibrated model is better than it is, and what it is fitted to looks harmless."""
    seen = []
    for name in ("fisher", "fisher_iterated"):
        module = sys.modules[f"ffprune_env.search.starts.{name}"]
        curves = module.damage_curves

        def look(prunable, windows, *rest, curves=curves):
            seen.append(windows)
            return curves(prunable, windows, *rest)

        monkeypatch.setattr(module, "damage_curves", look)
    assert run_main(ppo, monkeypatch, [*argv(flags), "--no-save-model"]) == 0
    model, tokenizer = ff.load_model(str(flags["--model"]))
    asked = WindowSettings(64, search_windows=2, final_windows=2, curve_windows=2, calibration_windows=2)
    curves = load_planned_windows(model, tokenizer, str(flags["--text"]), asked).texts["curves"]
    assert {tuple(x.tolist()) for windows in seen for x in windows} == {tuple(x) for x in curves.tolist()}


def test_a_model_that_cannot_be_written_costs_nothing_else(ppo, monkeypatch, flags, capsys):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(saved_model, "save_pruned", full)
    assert run_main(ppo, monkeypatch, argv(flags)) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line == "error: the model could not be written and read back: No space left on device"
    assert "searched" in captured.out
    best = json.loads((flags["--run"] / "best.json").read_text())
    assert "saved" not in best
    assert (flags["--run"] / "plots" / "retention.png").is_file()


def test_without_calibration_nothing_is_re_fitted(ppo, monkeypatch, flags):
    changes = ["--reward-model", "cut", "--calibration", "none", "--test-windows", "None", "--no-save-model"]
    assert run_main(ppo, monkeypatch, [*argv(flags), *changes]) == 0
    best = json.loads((flags["--run"] / "best.json").read_text())
    assert "calibration" not in best
    assert best["chosen"]["calibrated"] is False
    args = parse_settings(["--config", str(flags["--run"] / "config.yaml")], ppo.Args, ppo.RUN_PRESETS)
    assert (args.calibration, args.test_windows, args.reward_model) == ("none", None, "cut")
    assert not (flags["--run"] / "model").exists()


def test_the_reward_is_that_of_the_calibrated_model_if_asked_for(ppo, monkeypatch, flags, tmp_path):
    rewards = {}
    for flag in ("calibrated", "cut"):
        same = {"--run": tmp_path / flag, "--init": "ffn-only"}  # the other starts look at the calibrated model too
        asked = ["--reward-model", flag, "--no-fresh-windows"]
        assert run_main(ppo, monkeypatch, [*argv({**flags, **same}), *asked]) == 0
        rewards[flag] = read_samples(tmp_path / flag)[0]["ppl"]
    first = read_samples(tmp_path / "calibrated")[0]
    # This start looks at no curves, so nobody has windows for them.
    sizes = {"seq_len": 64, "search_windows": 2, "final_windows": 2, "curve_windows": 0, "calibration_windows": 2}
    asked = {"ridge": 0.01, "criterion": "surgeon", "calibration": "sequential", "fresh_windows": False}
    asked |= {"batch_size": None}  # as the run has it
    evaluator = ff.load_evaluator(str(flags["--model"]), str(flags["--text"]), **plainly(**sizes, **asked))
    for flag, calibration in (("calibrated", evaluator.calibration.approximate()), ("cut", None)):
        with evaluator.prunable.pruned(np.array(first["kept"]), calibration) as model:
            expected = ff.perplexity(model, evaluator.windows[: first["n_samples"]])
        assert rewards[flag] == pytest.approx(expected, rel=1e-5)


def test_a_saved_config_replays_the_run(ppo, monkeypatch, flags, tmp_path):
    assert run_main(ppo, monkeypatch, [*argv(flags), "--seed", "5", "--no-trust-remote-code"]) == 0
    monkeypatch.chdir(tmp_path)
    assert run_main(ppo, monkeypatch, ["--config", str(flags["--run"] / "config.yaml")]) == 0
    (tmp_path / "runs").rename(tmp_path / "moved")
    next((tmp_path / "moved").iterdir()).rename(tmp_path / "again")
    first, second = (read_samples(path) for path in (flags["--run"], tmp_path / "again"))
    for one, other in zip(first, second, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    one, other = (yaml.safe_load((path / "config.yaml").read_text()) for path in (flags["--run"], tmp_path / "again"))
    assert {**one, "run": None} == {**other, "run": None}


def test_the_script_runs_as_a_program_and_stops_on_ctrl_c(flags):
    flags |= {"--evaluations": 100000}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *argv(flags)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    samples = flags["--run"] / "samples.jsonl"
    while process.poll() is None and not (samples.exists() and samples.read_text().count("\n") > 20):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    done = len(read_samples(flags["--run"]))
    assert f"stopped after {done} of 100000 evaluations" in " ".join(output.split())
    assert json.loads((flags["--run"] / "best.json").read_text())["evaluations"] == done


def unwritable():
    """A model that can be pruned, of a family that is not written."""
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("stablelm", **LLAMA_LIKE, num_key_value_heads=2))


@pytest.fixture(scope="module")
def bad_folders(tmp_path_factory, save_tiny):
    """Model folders that cannot be searched, by name."""
    root = tmp_path_factory.mktemp("bad")
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_head=4, n_layer=2)).save_pretrained(root / "gpt2_folder")
    BloomForCausalLM(BloomConfig(vocab_size=256, hidden_size=32, n_head=4, n_layer=2)).save_pretrained(
        root / "bloom_folder"
    )
    shutil.copytree(save_tiny(), root / "broken_config")
    config = json.loads((root / "broken_config" / "config.json").read_text())
    (root / "broken_config" / "config.json").write_text(json.dumps({**config, "num_attention_heads": 0}))
    unwritable().save_pretrained(root / "stablelm_folder")
    for folder in root.iterdir():
        byte_tokenizer().save_pretrained(folder)
    return {folder.name: folder for folder in root.iterdir()} | {"no_tokenizer": save_tiny(with_tokenizer=False)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "opt-1.3"}, "unknown model 'opt-1.3'"),
        ({"--model": "opt-1.3b"}, "out of reach"),
        ({"--model": "gpt2_folder"}, "GPT2LMHeadModel cannot be pruned"),
        (
            {"--model": "stablelm_folder"},
            "a pruned stablelm cannot be written yet; families that can are llama, mistral, ",
        ),
        ({"--model": "no_tokenizer"}, "holds no tokenizer"),
        ({"--text": "wikitext"}, "near names: wikitext2"),
        ({"--text": "absent.txt"}, "no such file"),
        ({"--test-text": "absent.txt"}, "no such file"),
        ({"--search-windows": 100000}, "100000 were asked for"),
        ({"--test-windows": 100000}, "100000 were asked for"),
        ({"--sparsity": 0.95}, "--sparsity 0.95 needs an --a-min of 0.05 or less, got 0.2"),
        ({"--sparsity": -0.5}, "--sparsity takes numbers between 0 and 1, got -0.5"),
        ({"--a-min": 0.9}, "--sparsity 0.2 needs an --a-min of 0.8 or less, got 0.9"),
        ({"--a-min": 2}, "0 ≤ a_min < a_max ≤ 1"),
        ({"--criterion": "magic"}, "unknown criterion 'magic'; allowed are wanda"),
        ({"--evaluations": 1}, "--evaluations must be at least 2"),
        ({"--learning-rate": 0}, "--learning-rate must be between"),
        ({"--dtype": "int4"}, "unknown dtype 'int4'"),
        ({"--device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"--alpha-start": 3}, "alpha_start must be in [0, 1]"),
        ({"--batch-size": 0}, "--batch-size must be at least 1"),
        ({"--seq-len": 1}, "--seq-len must be at least 2, got 1"),
        ({"--seed": -1}, "--seed must be between 0 and"),
        ({"--log-std-init": "nan"}, "--log-std-init must be between -20 and 5"),
        ({"--model": "bloom_folder"}, "BloomForCausalLM cannot be pruned"),
        ({"--model": "broken_config"}, "could not be loaded"),
        ({"--run": __file__ + "/run"}, "is not a folder that can be written to"),
        ({"--action-scale": 0}, "--action-scale must be between"),
        ({"--ridge": -1}, "ridge must be a finite number, at least 0 (0.01 is usual), got -1"),
        ({"--calibration": "none"}, "--calibration none leaves no calibrated model to reward: add --reward-model cut"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(ppo, monkeypatch, flags, bad_folders, capsys, changes, message):
    flags |= {key: bad_folders.get(value, value) for key, value in changes.items()}
    capsys.readouterr()
    assert run_main(ppo, monkeypatch, argv(flags)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not Path(flags["--run"]).exists()


@pytest.mark.parametrize(
    ("name", "flag", "says"),
    [
        ("gpt2_folder", "--save-model", "cannot be pruned"),
        ("gpt2_folder", "--no-save-model", "cannot be pruned"),
        ("bloom_folder", "--no-save-model", "cannot be pruned"),
        ("stablelm_folder", "--save-model", "search it with --no-save-model"),
    ],
)
def test_what_cannot_be_pruned_or_written_is_said_once(ppo, monkeypatch, flags, bad_folders, capsys, name, flag, says):
    """No line recommends what the next one refuses, and where the model would be written its weights are not read."""
    if flag == "--save-model":
        monkeypatch.setattr(model_flags, "load_model", lambda *args: pytest.fail("the model was loaded"))
    flags |= {"--model": bad_folders[name]}
    assert run_main(ppo, monkeypatch, [*argv(flags), flag]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert ("--no-save-model" in line) is (name == "stablelm_folder")


@pytest.mark.parametrize("flag", ["--text", "--test-text"])
def test_a_text_that_is_not_there_is_said_before_a_model_is_loaded(ppo, monkeypatch, flags, capsys, flag):
    monkeypatch.setattr(model_flags, "load_model", lambda *args: pytest.fail("the model was loaded"))
    assert run_main(ppo, monkeypatch, argv({**flags, flag: "absent.txt"})) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_family_that_cannot_be_written_can_be_searched(ppo, monkeypatch, flags, bad_folders):
    flags |= {"--model": bad_folders["stablelm_folder"]}
    assert run_main(ppo, monkeypatch, [*argv(flags), "--no-save-model"]) == 0
    assert not (flags["--run"] / "model").exists()


def test_a_folder_with_another_run_is_left_alone(ppo, monkeypatch, flags, capsys):
    flags["--run"].mkdir()
    (flags["--run"] / "best.json").write_text("precious")
    assert run_main(ppo, monkeypatch, argv(flags)) == 2
    assert "already holds another run: choose another with --run" in capsys.readouterr().err
    assert [path.name for path in flags["--run"].iterdir()] == ["best.json"]


def test_one_file_for_everything_is_tested_on_its_test_part(ppo, monkeypatch, flags, tmp_path):
    for name, extra in (("one", {}), ("two", {"--test-text": flags["--text"]})):
        assert run_main(ppo, monkeypatch, argv({**flags, **extra, "--run": tmp_path / name})) == 0
    one, two = (json.loads((tmp_path / name / "best.json").read_text()) for name in ("one", "two"))
    assert one["dense"]["test_ppl"] == two["dense"]["test_ppl"]


def test_ctrl_c_while_loading_writes_nothing(ppo, monkeypatch, flags, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_flags, "load_model", interrupted)
    assert run_main(ppo, monkeypatch, argv(flags)) == 130
    assert "interrupted before the search began; nothing is lost" in capsys.readouterr().err
    assert not flags["--run"].exists()


def test_ffn_only_is_left_out_where_it_cannot_go(ppo, monkeypatch, flags, capsys):
    assert run_main(ppo, monkeypatch, [*argv(flags), "--sparsity", "0.75", "--a-min", "0.05"]) == 0
    best = json.loads((flags["--run"] / "best.json").read_text())
    assert "ffn-only" not in best
    assert best["uniform"]["sparsity"] >= 0.75


@pytest.mark.parametrize("rewarded", ["calibrated", "cut"])
def test_a_search_can_start_from_damage_curves(ppo, monkeypatch, flags, rewarded):
    """With no noise to speak of and no ramp, what is measured first is the start; it differs from that of ffn-only."""
    quiet = ["--reward-model", rewarded, "--log-std-init", "-12", "--no-ramp-sparsity", "--no-ramp-windows"]
    first = {}
    for init in ("fisher", "ffn-only"):
        run = flags["--run"].with_name(init)
        assert run_main(ppo, monkeypatch, [*argv({**flags, "--run": run, "--init": init}), *quiet]) == 0
        sample = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
        assert sample["target_sparsity"] == pytest.approx(0.2)
        first[init] = sample["rates"]
    assert min(first["ffn-only"][::2]) == 1
    assert min(first["fisher"][::2]) < 1 or max(first["fisher"][1::2]) - min(first["fisher"][1::2]) > 0.1


def test_a_search_starts_from_the_policy_of_another(ppo, monkeypatch, flags, tmp_path, capsys):
    """With no noise to speak of, what is measured first is what the policy of the other run says of the new target."""
    quiet = ["--log-std-init", "-12", "--no-ramp-sparsity", "--no-ramp-windows", "--sparsity", "0.3"]
    assert run_main(ppo, monkeypatch, [*argv(flags), "--learning-rate", "0.01"]) == 0
    second = {**flags, "--run": tmp_path / "second", "--init": flags["--run"]}
    assert run_main(ppo, monkeypatch, [*argv(second), *quiet, "--init-steps", "0"]) == 0
    mean = np.clip(Policy.load(flags["--run"]).scores(0.3) / 3, -0.8, 0.8)
    np.testing.assert_allclose(read_samples(tmp_path / "second")[0]["scores"], 3 * mean, atol=1e-3)
    better = {**second, "--run": tmp_path / "better"}  # improved by three steps
    assert run_main(ppo, monkeypatch, [*argv(better), *quiet]) == 0
    start = json.loads((tmp_path / "better" / "start.json").read_text())["targets"]["0.3"]
    np.testing.assert_allclose(read_samples(tmp_path / "better")[0]["scores"], np.clip(start, -2.4, 2.4), atol=1e-3)
    assert np.abs(np.array(start) - 3 * mean).max() > 0.01
    capsys.readouterr()
    for changes, message in (
        ({"--action-scale": 2}, "was trained with action_scale 3.0, not 2.0"),
        ({"--init": tmp_path}, "no policy can be read from"),
        ({"--init": "fishr"}, "must be none, ffn-only, fisher, fisher-iterated or the folder of a run, got 'fishr'"),
    ):
        assert run_main(ppo, monkeypatch, argv({**second, "--run": tmp_path / "third", **changes})) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not (tmp_path / "third").exists()


def test_the_reward_can_be_the_divergence(ppo, monkeypatch, flags):
    assert run_main(ppo, monkeypatch, [*argv(flags), "--reward", "kl"]) == 0
    samples = read_samples(flags["--run"])
    assert all(sample["reward"] == pytest.approx(np.exp(-sample["kl"]), rel=1e-5) for sample in samples)
    assert all(sample["kl"] > 0 for sample in samples)


def test_one_policy_serves_several_targets(ppo, monkeypatch, flags, caplog):
    """And one measurement of the dense model."""
    caplog.set_level("INFO")
    targets = ["--sparsity", "0.1", "0.3", "--ramp-sparsity", "--no-fresh-windows"]
    assert run_main(ppo, monkeypatch, [*argv(flags), *targets]) == 0
    run = flags["--run"]
    begun = [message.partition(": ")[0] for message in caplog.messages if message.endswith(" ...")]
    assert (begun.count("measuring dense"), begun.count("measuring searched")) == (1, 2)
    one, other = (json.loads((run / name / "best.json").read_text()) for name in ("s10", "s30"))
    assert one["dense"] == other["dense"]
    assert one["calibration"]["dense"] == other["calibration"]["dense"]
    assert [round(x["target_sparsity"] / x["rate"], 1) for x in with_alpha(read_samples(run))] == [0.1] * 4 + [0.3] * 4
    for name, sparsity in (("s10", 0.1), ("s30", 0.3)):
        best = json.loads((run / name / "best.json").read_text())
        assert best["target_sparsity"] == sparsity
        assert sparsity <= best["chosen"]["sparsity"] < sparsity + 0.02
        assert (run / name / "model" / "model.safetensors").is_file()
        assert (run / name / "plots" / "retention.png").is_file()
    args = parse_settings(["--config", str(run / "config.yaml")], ppo.Args, ppo.RUN_PRESETS)
    assert args.sparsity == (0.1, 0.3)


def test_targets_that_are_near_each_other_count_their_own_samples(ppo, monkeypatch, flags, capsys):
    several = ["--sparsity", "0.19", "0.2", "--evaluations", "12", "--no-save-model"]
    assert run_main(ppo, monkeypatch, [*argv(flags), *several]) == 0
    shown = capsys.readouterr().out
    for name, target, own in (("s19", 0.19, 8), ("s20", 0.2, 4)):
        assert f"12 evaluations in 0 s, {own} of them at sparsity {target}" in re.sub(r"in \d+ s", "in 0 s", shown)
        best = json.loads((flags["--run"] / name / "best.json").read_text())
        assert (best["evaluations"], best["evaluations_for_target"]) == (12, own)


def test_tensorboard_has_the_windows_that_were_made_of_what_was_asked_for(ppo, monkeypatch, flags):
    logged = []
    monkeypatch.setattr(report, "log_final", lambda policy, settings, *others: logged.append(settings))
    asked = {"--seq-len": 1024, "--test-seq-len": 2048, "--calibration-windows": 500, "--init": "ffn-only"}
    assert run_main(ppo, monkeypatch, [*argv(flags | asked), "--no-save-model"]) == 0
    (settings,) = logged
    assert (settings["seq_len"], settings["test_seq_len"], settings["search_windows"]) == (128, 128, 2)
    best = json.loads((flags["--run"] / "best.json").read_text())
    assert settings["calibration_windows"] == best["windows"]["calibration"] < 500


def with_alpha(samples):
    schedule = ff.ProgressiveSchedule(0.3, 2, 8, alpha_start=0.5)
    return [{**sample, "rate": schedule.alpha(sample["step"] - sample["step"] % 4)} for sample in samples]
