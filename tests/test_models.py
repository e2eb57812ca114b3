"""Names to models: what loads, in which format, and what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch

from ffprune_env import hub
from ffprune_env.devices import pick_device, pick_dtype
from ffprune_env.models import load_model


def test_a_local_folder_loads_in_evaluation_mode(tiny_folder):
    model, tokenizer = load_model(str(tiny_folder), dtype="float32")
    assert not model.training
    assert model.dtype == torch.float32
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert tokenizer("ab")["input_ids"]


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_bfloat16_is_chosen_where_the_cpu_multiplies_it_fast(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pick_dtype("auto", torch.device("cpu")) == dtype


def test_dtype_and_device_flags(tiny_folder):
    model, _ = load_model(str(tiny_folder), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="unknown dtype 'int8'; allowed are auto, bfloat16, float16, float32"):
        pick_dtype("int8", torch.device("cpu"))
    with pytest.raises(ValueError, match="device 'abacus' cannot be used here"):
        pick_device("abacus")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("opt-1.3", ValueError, r"unknown model 'opt-1\.3'.*near names: opt-1\.3b"),
        ("smollm", ValueError, r"near names: smollm2-135m"),
        ("./not/there", ValueError, r"unknown model"),
        ("opt-125m", OSError, r"model opt-125m comes from the Hugging Face hub.*use smollm2-135m or a local folder"),
        ("somebody/something", OSError, r"out of reach"),
    ],
)
def test_unknown_models_are_refused(name, error, message):
    with pytest.raises(error, match=message):
        load_model(name)


def test_an_unreachable_hub_is_found_out_quickly(monkeypatch):
    import time

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody answers
    hub._hub_problem.cache_clear()
    started = time.perf_counter()
    with pytest.raises(OSError, match="out of reach"):
        hub.require_hub("model x", "a local folder")
    assert time.perf_counter() - started < 10
    hub._hub_problem.cache_clear()


def test_incomplete_folders_say_what_is_missing(save_tiny, tmp_path):
    with pytest.raises(OSError, match="holds no tokenizer"):
        load_model(str(save_tiny(with_tokenizer=False)))
    with pytest.raises(OSError, match=r"holds no config\.json"):
        load_model(str(tmp_path))
    folder = tmp_path / "model"
    shutil.copytree(save_tiny(), folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(OSError, match=r"no \.safetensors weights"):
        load_model(str(folder))


def test_a_truncated_checkpoint_is_refused(save_tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(save_tiny(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match="could not be loaded"):
        load_model(str(folder))


def test_the_default_model_is_the_real_one():
    model, tokenizer = load_model()
    assert model.config.num_hidden_layers == 30
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    with torch.no_grad():
        prompt = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
        following = model(**prompt).logits[0, -1].argmax().item()
    assert tokenizer.decode([following]).strip() == "Paris"
