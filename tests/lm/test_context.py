"""No window is longer than the model's context, whichever script makes it."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, LLAMA_LIKE, byte_tokenizer, load_script, tiny_model
from plain import plain
from tiny_runs import run_main, settings
from transformers import AutoConfig, AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.lm.models import context_length

ROOT = Path(__file__).parents[2]
CONTEXT = 64


@pytest.fixture(scope="module", params=["llama", "opt"])
def model_folder(request, tmp_path_factory):
    """A model that takes 64 tokens: OPT fails beyond them, Llama only gets worse."""
    kind, config = FAMILIES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, request.param, (kind, {**config, "max_position_embeddings": CONTEXT}))
        model = tiny_model(request.param).float()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text("\n".join(f"number {i} is not {i + 1}" for i in range(200)))
    return path


@pytest.fixture(scope="module")
def run(model_folder, text_file, other_text, tmp_path_factory):
    """The folder of a run that asked for windows of search and test text that are too long."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    asked = {"seq-len": 1024, "test-seq-len": 2048, "test-text": other_text, "evaluations": 4, "alpha-start": 1}
    arguments = settings(model_folder, text_file, folder, **asked)
    assert run_main(load_script("train/ppo.py"), [*arguments, "--dtype", "float32", "--no-save-model"]) == 0
    return folder


@pytest.fixture
def dense(model_folder, other_text):
    """Perplexity on the first two windows of 64 tokens of the other text."""
    model, tokenizer = ff.load_model(str(model_folder), dtype="float32", device="cpu")
    windows = torch.tensor(tokenizer(other_text.read_text())["input_ids"][: 2 * CONTEXT]).view(2, CONTEXT)
    return pytest.approx(ff.perplexity(model, windows), rel=1e-5)


def script(monkeypatch, path, *arguments):
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    assert load_script(path).main() == 0


def test_perplexity_is_that_of_windows_the_model_takes(model_folder, other_text, dense, monkeypatch, tmp_path):
    for seq_len in (CONTEXT, 2048):
        arguments = (model_folder, "--text", other_text, "--seq-len", seq_len, "--windows", 2, "--dtype", "float32")
        script(monkeypatch, "evaluate/perplexity.py", *arguments, "--json", tmp_path / "x.json")
        result = json.loads((tmp_path / "x.json").read_text())
        assert (result["seq_len"], result["tokens"], result["ppl"]) == (CONTEXT, 2 * CONTEXT, dense)


def test_runs_search_and_are_compared_on_windows_that_the_model_takes(run, other_text, dense, monkeypatch, tmp_path):
    best = json.loads((run / "best.json").read_text())
    assert (best["seq_len"], best["test_seq_len"]) == (CONTEXT, CONTEXT)
    arguments = (run, "--test-text", other_text, "--test-windows", 2, "--json", tmp_path / "x.json")
    script(monkeypatch, "evaluate/compare_runs.py", *arguments)
    found = {x["policy"]: x for x in json.loads((tmp_path / "x.json").read_text())["results"] if not x["calibrated"]}
    assert found["dense"]["test_ppl"] == dense
    for name in ("search_ppl", "test_ppl"):
        assert found[str(run)][name] == pytest.approx(best["chosen"][name], rel=1e-5)


def test_rewards_are_studied_on_windows_that_the_model_takes(run, other_text, monkeypatch, tmp_path):
    measured = []
    for seq_len in (CONTEXT, 2048):
        flags = ("--test-seq-len", seq_len, "--test-windows", 2, "--rewarded-on", 1, "--policies", 3)
        arguments = (run, "--test-text", other_text, *flags, "--json", tmp_path / "x.json")
        script(monkeypatch, "evaluate/reward_study.py", *arguments)
        measured.append(json.loads((tmp_path / "x.json").read_text()))
    assert measured[0].keys() == measured[1].keys()
    for name, values in measured[0].items():  # out of memory halves batches, and moves the last digits
        assert measured[1][name] == pytest.approx(values, rel=1e-5, abs=1e-6)


def test_methods_are_compared_on_windows_that_the_model_takes(
    model_folder, text_file, other_text, dense, monkeypatch, tmp_path
):
    flags = (
        "--test-windows",
        2,
        "--search-windows",
        2,
        "--final-windows",
        2,
        "--calibration-windows",
        2,
        "--dtype",
        "float32",
    )
    texts = ("--text", text_file, "--test-text", other_text)
    arguments = ("--model", model_folder, *texts, *flags, "--methods", "uniform", "--sparsity", 0.2)
    script(monkeypatch, "evaluate/compare.py", *arguments, "--out", tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())["dense_test_ppl"] == dense


def test_gguf_files_are_compared_on_windows_that_the_model_takes(model_folder, other_text, dense, monkeypatch, capsys):
    export = load_script("evaluate/export_gguf.py")
    seen = []

    class Opened:
        def __init__(self, file, context):
            seen.append(context)

        def losses(self, windows):
            seen.append(windows.shape)
            return torch.zeros(len(windows))

        def tokens(self, text):
            return []

    monkeypatch.setattr(export, "LlamaCpp", Opened)
    monkeypatch.setattr(export.console, "width", 300)
    export.compare(export.Args(pruned=model_folder, file=Path("x.gguf"), windows=2, text=str(other_text)))
    assert seen == [CONTEXT, (2, CONTEXT)]
    ours = re.search(r"ours ([0-9.]+) \(float32\)", capsys.readouterr().out)
    assert ours is not None
    assert float(ours[1]) == dense


def test_an_evaluator_has_windows_that_the_model_takes_and_says_so_once(model_folder, text_file, caplog):
    model, tokenizer = ff.load_model(str(model_folder), dtype="float32", device="cpu")
    evaluator = build_evaluator(
        model, tokenizer, str(text_file), plain(seq_len=512, calibration_windows=2, search_windows=2)
    )
    assert evaluator.windows.shape == (2, CONTEXT)
    said = [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]
    assert said.count("the model takes 64 tokens: windows have as many, not 512") == 1
    caplog.clear()
    assert ff.load_windows(str(text_file), tokenizer, "all", CONTEXT, 2, model=model).shape == (2, CONTEXT)
    assert "the model takes" not in caplog.text


def test_no_script_makes_windows_without_naming_the_model():
    makers = ("load_windows", "load_test_windows")
    calls = []
    for path in (file for folder in ("ffprune_env", "evaluate", "train") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) in makers:
                calls.append(f"{path.name}:{node.lineno}")
                assert any(keyword.arg == "model" for keyword in node.keywords), calls[-1]
    assert len(calls) >= 6


def one_layer(kind, changes):
    small = {name: value for name, value in LLAMA_LIKE.items() if name != "max_position_embeddings"}
    counts = {"num_hidden_layers": 1, "n_layer": 1, "n_head": 4, "decoder_attention_heads": 4}
    if "num_decoder_layers" in changes:  # and not the other name
        del counts["num_hidden_layers"], small["num_hidden_layers"]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**small, **counts, **changes})).eval()


@pytest.mark.parametrize(
    ("kind", "changes", "most"),
    [
        ("gpt2", {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}, 64),
        ("mpt", {"max_seq_len": 64, "d_model": 32, "n_layers": 1, "n_heads": 4}, 64),
        ("whisper", {"max_target_positions": 64, "d_model": 32, "decoder_layers": 1}, 64),
        ("roberta", {"max_position_embeddings": 64, "is_decoder": True}, 63),  # and one less if padding were token 1
        ("roberta", {"max_position_embeddings": 64, "is_decoder": True, "pad_token_id": 9}, 54),
        ("bert", {"max_position_embeddings": 64, "is_decoder": True}, 64),
        ("opt", {"max_position_embeddings": 64, "word_embed_proj_dim": 32}, 64),  # two rows more in its table
        ("bart", {"max_position_embeddings": 64, "d_model": 32, "decoder_layers": 1}, 64),
        # Rows begin behind the padding token, and what it predicts next to a token has the position after it.
        ("prophetnet", {"max_position_embeddings": 64, "num_decoder_layers": 1, "num_decoder_attention_heads": 4}, 62),
    ],
)
def test_the_context_is_as_long_as_the_model_can_run(kind, changes, most):
    model = one_layer(kind, changes)
    assert context_length(model) == most
    with torch.no_grad():
        model(torch.full((1, most), 5))
        with pytest.raises((RuntimeError, IndexError)):
            model(torch.full((1, most + 1), 5))


@pytest.mark.parametrize(("kind", "changes"), [("bloom", {}), ("mamba", {}), ("xlnet", {"d_model": 32})])
def test_a_model_without_positions_has_no_longest_window(kind, changes):
    assert context_length(one_layer(kind, changes)) == sys.maxsize
