"""The model of a run is recovered: by a script of its own, and by the search itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import load_script
from safetensors.torch import load_file, save_file
from tiny_runs import run_main, settings
from transformers import AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.cli.past_run import folders_of
from ffprune_env.cli.recovery_flags import RecoverFlags
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.export.rewritten import card_with, save_rewritten
from ffprune_env.lm import identity
from ffprune_env.recovery import session
from ffprune_env.recovery.text import load_recovery_text
from ffprune_env.run import recovered, saved_model
from ffprune_env.run.config import read_config
from ffprune_env.run.folder import RunFolder
from ffprune_env.texts.window_settings import WindowSettings
from ffprune_env.texts.windows import load_test_windows

QUICK = ["--recover-rate", "1e-4", "--recover-tokens", "2000", "--recover-held-out", "2"]


@pytest.fixture
def recover(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("COLUMNS", "200")
    script = load_script("train/recover.py")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["train/recover.py", *map(str, words)])
        code = script.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def copied(ppo_script, tiny_folder, text_file, tmp_path_factory):
    """A run that removed so much that there is something to recover."""
    run = tmp_path_factory.mktemp("copied") / "run"
    assert run_main(ppo_script, settings(tiny_folder, text_file, run, sparsity=0.5, evaluations=4)) == 0
    return run


def test_it_writes_a_model_like_the_one_before_and_says_what_became_of_it(copied, recover, tmp_path):
    code, out, _ = recover(copied, *QUICK)
    assert code == 0
    assert all(word in out for word in ("dense", "searched, from disk", "recovered, from disk", "held-out KL"))
    folder = copied / "recovered"
    assert f"serve it:    ffprune export-gguf {folder} {folder}.gguf" in out.replace("\n", " ")
    best, facts = (json.loads((copied / name).read_text()) for name in ("best.json", "recovery.json"))
    assert best["recovered"]["test_ppl"] == facts["test_ppl"]
    assert best["recovered"]["kept"] == best["saved"]["kept"]
    assert facts["after"]["kl"] < facts["before"]["kl"]
    folder = copied / "recovered"
    names = {file.name for file in (copied / "model").iterdir()}
    assert {file.name for file in folder.iterdir()} == names
    assert not (copied / "recovery").exists()
    assert list((copied / "tb" / "recovery").iterdir())
    card = (folder / "README.md").read_text()
    assert f"| trained on | {facts['tokens']:,} tokens of words.txt" in card
    assert card.index("## Recovery") < card.index("## Load it")
    # Read by ffprune, by its own code and by llama.cpp's converter; and pruned again.
    model = ff.load_pruned(folder, device="cpu")
    own = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(own(tokens).logits, model(tokens).logits)
        assert (model(tokens).logits - ff.load_pruned(copied / "model")(tokens).logits).abs().max() > 1e-4
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    again = settings(folder, Path(json.loads(json.dumps(str(copied)))), tmp_path / "again")
    assert str(folder) in again


def test_the_same_command_again_takes_the_place_of_what_was_there(copied, recover):
    code, _, _ = recover(copied, *QUICK[2:], "--recover-rate", 0.03, "--teacher-topk", 64, "--lora", 2)
    assert code == 0
    card = (copied / "recovered" / "README.md").read_text()
    assert "the dense model's 64 most probable tokens" in card
    assert card.count("## Recovery") == 1


def test_what_is_no_better_is_not_written_and_said_so(whole, recover, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    code, _, err = recover(run, "--recover-rate", 100, "--recover-tokens", 200)
    assert code == 1
    assert "nothing was written, model/ in" in err
    assert not any((run / name).exists() for name in ("recovered", "recovery.json", "recovery"))


def test_a_worse_recovery_leaves_an_earlier_one_and_all_that_is_told_of_it(copied, recover, tmp_path):
    run = shutil.copytree(copied, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", "tb"))
    assert recover(run, *QUICK)[0] == 0
    told = [(run / name).read_bytes() for name in ("best.json", "recovery.json", "recovered/model.safetensors")]
    code, _, err = recover(run, "--recover-rate", 100, "--recover-tokens", 200)
    assert code == 1
    assert f"nothing was written, and recovered/ in {run}, of an earlier recovery, stays: " in err
    assert "the best there is" not in err
    assert told == [(run / name).read_bytes() for name in ("best.json", "recovery.json", "recovered/model.safetensors")]


@pytest.mark.parametrize("fails", ["save_rewritten", "load_pruned"])
def test_what_was_trained_outlives_what_goes_wrong_when_it_is_written(copied, recover, tmp_path, monkeypatch, fails):
    run = shutil.copytree(copied, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", "tb", "recovered"))
    (run / "recovery.json").unlink(missing_ok=True)
    real = getattr(recovered, fails)

    def full(*arguments, **more):
        if fails == "load_pruned" and arguments[0] == run / "model":
            return real(*arguments, **more)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(recovered, fails, full)
        code, _, err = recover(run, *QUICK)
    assert code == 1
    assert "No space left on device" in err
    assert f"what was trained is kept, and python train/recover.py {run} with the same flags goes on" in err
    monkeypatch.setattr(session.Session, "_train", lambda *_: pytest.fail("it was trained again"))
    code, _, _ = recover(run, *QUICK)
    best, facts = (json.loads((run / name).read_text()) for name in ("best.json", "recovery.json"))
    assert (code, best["recovered"]["test_ppl"]) == (0, facts["test_ppl"])
    assert not (run / "recovery").exists()
    assert ff.load_pruned(run / "recovered", device="cpu").config.vocab_size == 256


def test_a_model_that_is_written_again_is_still_recovered_and_another_is_not(
    copied, recover, ppo_script, tmp_path, monkeypatch
):
    """By a run that goes on, or an allocation that is made again, whatever is cut off on the way."""
    run = shutil.copytree(copied, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", "tb"))
    assert recover(run, *QUICK)[0] == 0
    before = json.loads((run / "best.json").read_text())
    resume = ["--resume", run]

    def cut_off(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saved_model, "save_pruned", cut_off)
        assert run_main(ppo_script, resume) == 130
    best = json.loads((run / "best.json").read_text())
    assert [best[name] for name in ("saved", "recovered")] == [before[name] for name in ("saved", "recovered")]
    assert ff.load_pruned(run / "model", device="cpu").config.vocab_size == 256  # until there is another
    assert run_main(ppo_script, resume) == 0
    best = json.loads((run / "best.json").read_text())
    assert (best["recovered"], best["saved"]["test_ppl"]) == (before["recovered"], before["saved"]["test_ppl"])
    assert all((run / name).exists() for name in ("recovered", "recovery.json"))
    weights = load_file(run / "model" / "model.safetensors")
    save_file({name: x + 1 for name, x in weights.items()}, run / "model" / "model.safetensors")
    (run / "recovery").mkdir()
    assert run_main(ppo_script, resume) == 0
    best = json.loads((run / "best.json").read_text())
    assert "recovered" not in best
    assert best["saved"]["test_ppl"] == before["saved"]["test_ppl"]
    assert not any((run / name).exists() for name in ("recovered", "recovery.json", "recovery"))


def test_what_cannot_be_recovered_is_refused_in_one_line(whole, recover, tmp_path, text_file):
    lost = shutil.copytree(whole, tmp_path / "lost")
    shutil.rmtree(lost / "model")
    shutil.copytree(whole, tmp_path / "several")
    (tmp_path / "several" / "model").rename(tmp_path / "several" / "s20")
    (tmp_path / "several" / "s20" / "model").mkdir()
    same = tmp_path / "other_name.txt"
    same.write_text(text_file.read_text())
    cut_off = shutil.copytree(whole, tmp_path / "cut_off")
    (cut_off / "best.json").unlink()
    for words, message in {
        (tmp_path,): "is not a run, it has no config.yaml; give the folder that",
        (tmp_path / "nowhere" / "run",): "is not a run, there is no such folder",
        (whole / "s30",): "s30 holds no model of a run: there is no best.json in it",
        (cut_off,): f"has not ended: there is no {cut_off}/best.json; go on with it by --resume {cut_off}",
        (lost,): "holds no model that was written and measured",
        (tmp_path / "several",): "has models of several sparsities: give one of",
        (whole, "--recover-minutes", 0): "--recover-minutes must be more than 0, got 0.0",
        (whole, "--lora", 2, "--recover-weights", "outputs"): "leave out --recover-weights outputs",
        (whole, "--teacher-topk", 2, "--recover-hidden", 1): "leave out --teacher-topk",
        (whole, "--recovery-text", "wikitext3"): "unknown text 'wikitext3'",
        (whole, "--recovery-text", same): "of the test text is also recovery text, which",
    }.items():
        code, out, err = recover(*words)
        assert code, (words, out)
        (line,) = [line for line in err.splitlines() if line.startswith("error")]
        assert message in line


def test_the_folder_of_a_model_stands_for_that_of_its_run(whole):
    assert [folder.path for folder in folders_of(whole / "model")] == [whole, whole]


def test_a_folder_that_was_taken_for_a_run_or_a_config_is_told_what_is_meant(whole):
    with pytest.raises(ValueError, match=f"plots is not a run, it has no config.yaml; .* did you mean {whole}"):
        RunFolder(whole / "plots").read_config()
    with pytest.raises(ValueError, match=f"{whole} is a folder: give the file, {whole}/config.yaml"):
        read_config(whole)
    with pytest.raises(ValueError, match="there is no file here"):
        read_config(Path("here.yaml"))


def test_a_search_recovers_what_it_wrote(ppo_script, tiny_folder, text_file, tmp_path, capsys):
    run = tmp_path / "run"
    flags = settings(tiny_folder, text_file, run, evaluations=0, calibration="ridge", init="ffn-only", sparsity=0.5)
    code = run_main(ppo_script, [*flags, "--recover", "--no-baselines", *QUICK])
    assert code == 0
    assert "recovered, from disk" in capsys.readouterr().out
    assert "recovered" in json.loads((run / "best.json").read_text())
    assert ff.load_pruned(run / "recovered", device="cpu").config.vocab_size == 256


def test_figures_of_a_search_do_not_depend_on_its_recovery():
    assert {field.name for field in dataclasses.fields(RecoverFlags)} <= identity._NOT_MEASURED


def test_a_card_without_a_place_for_it_gets_the_section_behind(tmp_path, tiny_folder):
    assert card_with("# x\n\n## Load it\n\ny\n", "## Recovery") == "# x\n\n## Recovery\n\n## Load it\n\ny\n"
    assert card_with("", "## Recovery\n") == "## Recovery\n"


def test_what_is_read_back_is_what_was_in_memory(whole, tmp_path):
    model = ff.load_pruned(whole / "model", device="cpu")
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="was not written: what is read back is not the model"):
        save_rewritten(model, tmp_path / "out", whole / "model", "## Recovery")
    assert not (tmp_path / "out").exists()


def test_without_a_text_of_its_own_it_is_the_calibration_part(tiny_folder, text_file):
    model, tokenizer = ff.load_model(str(tiny_folder))
    asked, told = WindowSettings(seq_len=64), ff.RecoverySettings(held_out=3)
    found = load_recovery_text(model, tokenizer, None, str(text_file), asked, told, {})
    every = torch.stack([passage.tokens for passage in found.every])
    part = ff.load_windows(str(text_file), tokenizer, "calibration", 64)
    assert sorted(every.tolist()) == sorted(part.tolist())
    assert len(found.held_out) == 3


def test_what_the_calibration_saw_is_trained_on_and_never_stopped_by(tiny_folder, text_file, tmp_path):
    """There a calibrated model is better than it is, and any training looks like a loss."""
    model, tokenizer = ff.load_model(str(tiny_folder))
    asked, told = WindowSettings(seq_len=64), ff.RecoverySettings(held_out=3)
    part = ff.load_windows(str(text_file), tokenizer, "calibration", 64)
    searched = ff.load_windows(str(text_file), tokenizer, "search", 64)
    others = {"calibration": part, "search": searched[:1], "curves": searched[1:], "pool": searched[:0]}
    found = load_recovery_text(model, tokenizer, None, str(text_file), asked, told, others)
    assert [passage.tokens.tolist() for passage in found.train] == part.tolist()
    stopping = [passage.tokens.tolist() for passage in found.held_out]
    assert len(stopping) == min(3, len(searched) - 1)
    assert all(window in others["curves"].tolist() for window in stopping)
    other = tmp_path / "other.txt"
    other.write_text(" ".join(f"{i} {i % 7}" for i in range(2000)))
    found = load_recovery_text(model, tokenizer, str(other), str(text_file), asked, told, others)
    assert len(found.held_out) == 3
    assert not any(passage.tokens.tolist() in searched.tolist() for passage in found.every)


def test_marks_of_unknown_words_are_not_trained_on(tiny_folder, text_file, tmp_path):
    model, tokenizer = ff.load_model(str(tiny_folder))
    asked, told = WindowSettings(seq_len=64), ff.RecoverySettings(held_out=1)
    lines = [f" the {i} th <unk> of {i * i}" for i in range(300)]

    def loaded(name, lines):
        (tmp_path / name).write_text("\n".join(lines))
        found = load_recovery_text(model, tokenizer, str(tmp_path / name), str(text_file), asked, told, {})
        return [passage.tokens.tolist() for passage in found.every]

    bare = loaded("bare.tokens", [line.replace(" <unk>", "") for line in lines])
    assert loaded("marked.tokens", lines) == bare
    assert loaded("marked.txt", lines) != bare


def test_where_another_text_is_tested_on_the_rest_of_this_one_is_trained_on(tiny_folder, text_file, tmp_path):
    model, tokenizer = ff.load_model(str(tiny_folder))
    asked, told = WindowSettings(seq_len=64), ff.RecoverySettings(held_out=1)

    def trained_on(test_file):
        named = None if test_file is None else str(test_file)
        test = load_test_windows(str(text_file), named, tokenizer, 64, None)
        given = (None, str(text_file), asked, told, {"test": test}, named)
        return sum(len(passage.tokens) for passage in load_recovery_text(model, tokenizer, *given).every)

    sizes = {split: ff.load_windows(str(text_file), tokenizer, split, 64).numel() for split in ("calibration", "train")}
    assert sizes["train"] > 1.6 * sizes["calibration"]
    assert trained_on(None) == sizes["calibration"]
    assert trained_on(text_file) == sizes["calibration"]
    other = tmp_path / "other.txt"
    other.write_text(" ".join(f"{i} {i % 7}" for i in range(2000)))
    assert trained_on(other) == sizes["train"]
    held_back = tmp_path / "held_back.txt"  # what the user cut off the same text
    held_back.write_text(text_file.read_text()[-4000:])
    assert trained_on(held_back) == sizes["calibration"]
