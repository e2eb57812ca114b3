"""Names to models: what loads, in which format, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer
from transformers import GenerationConfig

from ffprune_env.lm import hub, model_names
from ffprune_env.lm.devices import pick_device, pick_dtype
from ffprune_env.lm.generation_settings import make_writable
from ffprune_env.lm.models import load_model


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "runs/modle",
            r"'runs/modle': there is no folder runs/modle; near ones are runs/model; if the hub's .* download",
        ),
        ("runs/x/modle", r"there is no folder runs/x; runs holds runs/model, runs/other$"),
        ("runs/model/1", r"there is no folder runs/model/1; runs/model holds no folders"),
        ("./runs/modle", r"there is no folder runs/modle; near ones are runs/model$"),
        ("run/x/model", r"there is no folder run; near ones are runs$"),
        ("runz", r"unknown model 'runz'.*near names: runs"),
        ("runs/model.bin", r"runs/model\.bin is a file: give the folder that holds it, runs"),
    ],
)
def test_a_mistyped_folder_is_no_hub_id(monkeypatch, tmp_path, name, message):
    """Even where the hub could be asked: somebody may have a repository of that name."""
    for folder in ("runs/model", "runs/other", "runs/.scratch", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs" / "model.bin").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_names, "require_hub", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(name)
    assert len(str(caught.value).splitlines()) == 1


def test_what_was_downloaded_is_found_beside_a_folder_of_its_owner(monkeypatch, tmp_path):
    (tmp_path / "somebody").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_names, "is_cached", lambda repository: repository == "somebody/model")
    assert model_names.resolve_name("somebody/model") == "somebody/model"


def test_incomplete_folders_say_what_is_missing(save_tiny, tmp_path):
    with pytest.raises(OSError, match="holds no tokenizer"):
        load_model(str(save_tiny(with_tokenizer=False)))
    with pytest.raises(OSError, match=r"holds no config\.json"):
        load_model(str(tmp_path))
    folder = shutil.copytree(save_tiny(), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(
        OSError, match=r"holds no weights that are read, which are model\.safetensors, .*index\.json; con"
    ):
        load_model(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(OSError, match=r"holds an adapter .* beside a model; merge it"):
        load_model(str(folder))


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "T5Tokenizer", "GPT2Tokenizer", "TokenizersBackend", None])
def test_a_tokenizer_without_a_vocabulary_is_none(tiny_folder, tmp_path, kind):
    """Transformers makes most kinds all the same, of special tokens alone, and every text has no or unknown tokens."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} if kind else {}))
    with pytest.raises(
        OSError, match=r"model could not be loaded: it holds no vocabulary of a tokenizer: save"
    ) as caught:
        load_model(str(folder))
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_that_is_not_the_one_of_its_file_is_said(save_tiny, tmp_path, caplog):
    """Of some model types transformers knows how they split text, whatever tokenizer.json says."""
    folder = save_tiny("qwen2", with_tokenizer=False)
    byte_tokenizer([("e", "n")]).save_pretrained(folder)
    load_model(str(folder), "float32")
    assert "splits text unlike" not in caplog.text
    described = json.loads((folder / "tokenizer.json").read_text())
    described["normalizer"] = {"type": "Lowercase"}
    described["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    load_model(str(folder), "float32")
    assert "Qwen2Tokenizer, which transformers makes for this model, splits text unlike" in caplog.text


def test_a_folder_is_found_whatever_its_name_and_where_it_lies(tiny_folder, tmp_path, monkeypatch, windows):
    expected = load_model(str(tiny_folder), "float32")[0](windows).logits
    odd = Path(shutil.copytree(tiny_folder, tmp_path / "models [v2]" / "tiny ünï 模"))
    (tmp_path / "link").symlink_to(odd)
    monkeypatch.chdir(odd)
    for name in (str(odd), f"{tmp_path}/link/", "."):
        torch.testing.assert_close(load_model(name, "float32")[0](windows).logits, expected, rtol=0, atol=0)
    monkeypatch.chdir(tmp_path)
    for name, message in (("models [v2]/tiny ünI", "near ones are .*tiny ünï"), ("~/tiny", "there is no folder ~;")):
        with pytest.raises(ValueError, match=message):
            load_model(name)


def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(tiny_folder, tmp_path, monkeypatch, capfd):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    code = {
        "model_type": "brings_code",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config | code))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a question was asked"))
    with pytest.raises(OSError, match=r"it brings Python code of its own; .* say --trust-remote-code "):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}, {"eos_token_id": 2}),
        ({"do_sample": False, "top_k": 3, "max_new_tokens": 7}, {"do_sample": False, "max_new_tokens": 7}),
        ({"output_scores": True}, {}),
        ({"do_sample": True, "temperature": 0.9}, {"do_sample": True, "temperature": 0.9}),
    ],
    ids=lambda value: "+".join(value),
)
def test_generation_settings_can_be_written(tiny_folder, tmp_path, caplog, given, left):
    """Those that transformers would refuse to write have no effect; those that it writes stay as they are."""
    model, _ = load_model(str(tiny_folder), "float32")
    model.generation_config = GenerationConfig(**given)  # not as it was read: versions before 5.23 refuse that, too
    make_writable(model)
    model.generation_config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    written.pop("transformers_version")
    assert written == left
    unset = [f"{name} = {value}" for name, value in given.items() if name not in left]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ffprune_env")]
    assert [line.partition("are unset: ")[2] for line in said] == ([", ".join(unset)] if unset else [])


def test_generation_settings_that_nothing_can_write_are_found_when_a_model_is_loaded(
    tiny_folder, tmp_path, monkeypatch
):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6}))
    model, _ = load_model(str(folder), "float32")
    model.save_pretrained(tmp_path / "again")

    def refuses(*_):
        raise ValueError("not\nthese")

    monkeypatch.setattr(GenerationConfig, "save_pretrained", refuses)
    with pytest.raises(OSError, match=r"its generation_config\.json could not be written again: not these; correct it"):
        load_model(str(folder))


def test_the_default_model_is_the_real_one():
    model, tokenizer = load_model()
    assert model.config.num_hidden_layers == 30
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    with torch.no_grad():
        prompt = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
        following = model(**prompt).logits[0, -1].argmax().item()
    assert tokenizer.decode([following]).strip() == "Paris"
