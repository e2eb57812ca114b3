"""evaluate/bench_serving.py where a server refuses a model: the others are measured all the same."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from conftest import byte_tokenizer, load_script, tiny_model
from test_evaluate_scripts import ENDS, failing, run_script

import ffprune_env as ff
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.serving.served import Measured, Timing


@pytest.fixture(scope="module")
def opt(save_tiny, tmp_path_factory):
    """A dense OPT and a pruned one, of which no GGUF file can be written."""
    dense, pruned = save_tiny("opt"), tmp_path_factory.mktemp("pruned")
    prunable = PrunableModel(tiny_model("opt").float())
    prunable.rank([np.arange(layout.n_members) for layout in prunable.layouts])
    ff.save_pruned(prunable, [max(1, unit.n_groups // 2) for unit in prunable.units], pruned, byte_tokenizer())
    return dense, pruned


@pytest.fixture
def bench_serving(opt, monkeypatch, capsys, tmp_path):
    """Runs evaluate/bench_serving.py, which times nothing, and vLLM refuses; returns what was to be timed, too."""
    pytest.importorskip("cyllama")
    asked, (dense, pruned) = [], opt
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")  # it has what it is asked for
    python.chmod(0o755)

    def in_turns(_, name, sources, job, *others):
        asked.append((name, job.threads, job.trust_remote_code))
        if name == "vllm":
            raise ValueError("the process of the dense model died: no\nmemory")
        timings = tuple(Timing(what, 1, (1.0, 1.0)) for what in ("prefill", "decode"))
        return dict.fromkeys(sources, Measured(timings, 8.0, None))

    monkeypatch.setattr(load_script("evaluate/bench_serving.py"), "in_turns", in_turns)

    def run(*words):
        asked.clear()
        own = (pruned, "--dense", dense, "--prompt", 8, "--new-tokens", 4, "--device", "cpu", "--vllm-python", python)
        return *run_script("evaluate/bench_serving.py", monkeypatch, capsys, *own, *words), list(asked)

    return run


@pytest.mark.parametrize(("error", "exit_code"), ENDS)
def test_what_one_server_took_is_told_whatever_comes_on_the_next(
    error, exit_code, bench_serving, monkeypatch, tmp_path
):
    script, file = load_script("evaluate/bench_serving.py"), tmp_path / "x.json"
    if isinstance(error, OSError):  # a server that the disk is too full for is left out
        monkeypatch.setattr(script.Args, "write_json", failing(None, 0, error))
    else:
        monkeypatch.setattr(script, "in_turns", failing(script.in_turns, 1, error))
    code, out, err, _ = bench_serving("--backend", "transformers", "--threads", 1, 2, "--json", file)
    assert (code, len(said_in(err))) == (exit_code, 1)
    assert re.search(r"transformers float32 +│ +1 │", out)
    if not isinstance(error, OSError):
        assert [x["threads"] for x in json.loads(file.read_text())["served"]] == [1]


def said_in(err):
    """What the script said of its end, less what libraries print beside it."""
    return [line for line in err.splitlines() if line.startswith(("interrupted", "error"))]


def lines_of(err):
    """What was said, less what libraries print beside it."""
    return [line for line in err.splitlines() if line.startswith(("left out", "error"))]


def test_a_server_that_refuses_is_left_out_and_the_others_are_measured(bench_serving, tmp_path):
    file = tmp_path / "x.json"
    words = ("--backend", "vllm", "transformers", "llama.cpp", "--threads", 1, 2, "--trust-remote-code")
    code, out, err, asked = bench_serving(*words, "--json", file)
    assert code == 0
    gguf, vllm = lines_of(err)  # what no file can be written of is known before anything is timed
    assert gguf.startswith("left out: llama.cpp: a opt cannot be written as GGUF")
    assert vllm == "left out: vllm: the process of the dense model died: no memory"
    assert asked == [("vllm", 1, True), ("transformers", 1, True), ("transformers", 2, True)]
    served = json.loads(file.read_text())["served"]
    assert [(x["backend"], x["threads"], x["cache"]) for x in served] == [
        ("transformers float32", 1, None), ("transformers float32", 2, None),
    ]  # fmt: skip
    assert re.search(r"cache per token +│ +│ +│ +– ", out)


def test_where_no_server_is_left_nothing_was_measured(bench_serving):
    code, _, err, asked = bench_serving("--backend", "vllm", "llama.cpp")
    assert (code, len(lines_of(err)), asked) == (1, 2, [("vllm", 1, False)])
    for name, message in (("llama.cpp", "error: a opt cannot be written"), ("vllm", "error: the process of the dense")):
        code, _, err, _ = bench_serving("--backend", name)
        assert code == 2
        assert lines_of(err)[-1].startswith(message)
