"""Families on servers: what they compute is compared with what we do, and a difference is a fault."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from conftest import load_script

from ffprune_env.export.gguf import file as gguf_file
from ffprune_env.export.trial import FaultError
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.serving import trial


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "llama"
    trial.write_tiny("llama", folder)
    return folder


def test_llama_cpp_has_our_perplexity_and_wrong_files_do_not(folder, monkeypatch):
    pytest.importorskip("cyllama")
    found = trial.by_llama_cpp(folder)
    assert set(found.off) == set(trial.TYPES)
    assert abs(found.off["f16"]) < 1e-3 < found.off["q4_k_m"]
    right = gguf_file.tensors

    def turned(*args):  # one matrix of many, a little wrong
        return ((name, x.roll(1, 0) if name == "blk.1.attn_k.weight" else x) for name, x in right(*args))

    monkeypatch.setattr(gguf_file, "tensors", turned)
    with pytest.raises(FaultError, match=r"^its perplexity as f16 in llama\.cpp is [\d.]+, and should be [\d.]+$"):
        trial.by_llama_cpp(folder)


def test_a_family_that_llama_cpp_lacks_says_why(tmp_path):
    trial.write_tiny("opt", tmp_path / "opt")
    found = trial.by_llama_cpp(tmp_path / "opt")
    assert found.off == {}
    assert found.reason.startswith("a opt cannot be written as GGUF, llama.cpp has no architecture with")


# Stands in for the Python that has vLLM: it answers what it finds in the folder.
SERVER = """#!{python}
import json, pathlib, sys
job = json.loads(sys.argv[2])
found = {{name: json.loads((pathlib.Path(name) / "said.json").read_text()) for name in job["folders"]}}
pathlib.Path(sys.argv[3]).write_text(json.dumps(found))
"""


@pytest.fixture
def server(tmp_path):
    program = tmp_path / "python"
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(0o755)
    return program


def right_answers(folder):
    model = load_pruned(folder, device="cpu").float()
    prompts = torch.randint(3, 248, (8, 8), generator=torch.Generator().manual_seed(2))
    for prompt in prompts:
        ids = prompt
        logprobs = []
        for _ in range(8):
            last = model(ids[None]).logits[0, -1].log_softmax(-1)
            ids = torch.cat([ids, last.argmax()[None]])
            logprobs.append(float(last.max()))
        yield {"tokens": ids[8:].tolist(), "logprobs": logprobs}


@torch.no_grad()
def test_answers_of_vllm_are_compared_with_ours(folder, server):
    answers = list(right_answers(folder))
    others = [{**answers[0], "tokens": [1] * 8}, *answers[1:]]
    shifted = [{**answers[0], "logprobs": [x + 0.01 for x in answers[0]["logprobs"]]}, *answers[1:]]
    said = {"right": answers, "other": others, "shifted": shifted, "refused": "no such class"}
    found = {}
    for name, what in said.items():
        (folder / "said.json").write_text(json.dumps(what))
        found |= trial.by_vllm({name: folder}, server)
    assert {name: one.same for name, one in found.items()} == {
        "right": True, "other": False, "shifted": False, "refused": False,
    }  # fmt: skip
    assert found["right"].off < 1e-5
    assert found["shifted"].off == pytest.approx(0.01, rel=0.01)
    assert (found["other"].off, found["refused"].reason) == (math.inf, "no such class")


def test_a_server_that_dies_is_told_by_what_it_said_last(folder, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(ValueError, match=r"^the process of vLLM died: no memory$"):
        trial.by_vllm({"llama": folder}, program)


def test_the_table_tells_what_is_wrong_in_a_server():
    script = load_script("evaluate/families.py")
    outcome = script.Outcome("llama", *[True] * 5)
    off = dict.fromkeys(trial.TYPES, 0.01)
    right = script.Tried(outcome, trial.LlamaCppFinding(off, ""), trial.VllmFinding(1e-5))
    assert script.served_row(right)[4:] == ["yes", "+1.00%", "+1.00%", "+1.00%", "+1.00%", ""]
    wrong = script.Tried(outcome, trial.LlamaCppFinding({}, "no architecture"), trial.VllmFinding(0.5))
    assert script.served_row(wrong)[4:] == ["no", *["no"] * 4, "FAULT: log-probabilities in vLLM are off by 0.5 nats"]
    refused = script.Tried(
        outcome, trial.LlamaCppFinding({}, "no architecture"), trial.VllmFinding(math.inf, "no class")
    )
    assert script.served_row(refused)[-1] == "no architecture; no class"
    assert script.served_row(script.Tried(outcome))[4:-1] == ["not tried"] * 5
