"""A decode is so many steps of the model on every server, and the time of its prompt is no part of it."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import pytest

from ffprune_env.export.gguf.file import write_gguf
from ffprune_env.export.gguf.kinds import kind_of
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.serving import trial, worker
from ffprune_env.serving.worker import SHORT, InLlamaCpp, InTransformers, InVllm, Job, answer_to, behind_the_first

STEPS, BATCH = 5, 2
JOB = Job(prompt=24, new_tokens=STEPS, batches=[BATCH], threads=1)
# Seconds of a pass over several tokens of each sequence, and over one.
LONG, STEP = 100.0, 1.0


class Clock:
    """Stands still but for what models take."""

    def __init__(self):
        self.now = 0.0
        self.perf_counter = self.process_time = lambda: self.now

    def spend(self, tokens_each):
        self.now += STEP if tokens_each == 1 else LONG


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(worker, "time", clock)
    return clock


@pytest.fixture
def folder(tmp_path):
    trial.write_tiny("llama", tmp_path / "llama")
    return tmp_path / "llama"


def in_transformers(folder, clock, monkeypatch):
    served = InTransformers(str(folder), JOB)

    def seen(_, args, kwargs):
        tokens = args[0] if args else kwargs["input_ids"]
        clock.spend(tokens.shape[1])

    served.model.register_forward_pre_hook(seen, with_kwargs=True)
    return served


def in_llama_cpp(folder, clock, monkeypatch):
    pytest.importorskip("cyllama")
    file = folder / "model.gguf"
    write_gguf(load_pruned(folder, device="cpu"), folder, file, kind_of("f16"))
    served = InLlamaCpp(str(file), JOB)
    decode = served._decode

    def spending(tokens):
        clock.spend(len(tokens) // BATCH)
        decode(tokens)

    monkeypatch.setattr(served, "_decode", spending)
    return served


class SteppingVllm:
    """vLLM, which answers a token for each pass over the model."""

    def __init__(self, *_, **__):
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 100))

    def generate(self, prompts, sampling, use_tqdm):
        for i in range(sampling.max_tokens):
            SteppingVllm.clock.spend(1 if i else len(prompts[0]["prompt_token_ids"]))


def in_vllm(folder, clock, monkeypatch):
    platforms = SimpleNamespace(current_platform=SimpleNamespace(device_type="cpu"))
    own = SimpleNamespace(LLM=SteppingVllm, SamplingParams=SimpleNamespace, platforms=platforms)
    monkeypatch.setitem(sys.modules, "vllm", own)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr(SteppingVllm, "clock", clock, raising=False)
    return InVllm(str(folder), JOB)


@pytest.mark.parametrize("serve", [in_transformers, in_llama_cpp, in_vllm])
def test_a_decode_is_its_steps_without_the_prompt_on_every_server(serve, folder, clock, monkeypatch):
    served = serve(folder, clock, monkeypatch)
    assert answer_to(f"decode {BATCH}", served) == {"wall": STEPS * STEP, "cpu": STEPS * STEP}
    assert answer_to(f"prefill {BATCH}", served) == {"wall": LONG, "cpu": LONG}
    assert JOB.longest >= SHORT + 1 + STEPS


def test_what_took_no_longer_than_its_beginning_is_timed_again_and_then_said(clock):
    def answers(seconds):
        took = iter(seconds)
        return lambda _: setattr(clock, "now", clock.now + next(took))

    assert behind_the_first(answers([9.0, 2.0, 1.0, 4.0]), 3) == {"wall": 3.0, "cpu": 3.0}
    with pytest.raises(ValueError, match=r"^an answer of 4 tokens took no longer than one of 1, 5 times: ask for more"):
        behind_the_first(answers(itertools.repeat(1.0)), 3)
