"""Tiny random models of every family, and a tokenizer for them, made on the spot."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings as hypothesis_settings
from tiny_runs import run_main, settings
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ffprune_env.lm.tiny_families import byte_tokenizer as byte_tokenizer  # tests find it here

# A busy machine is no reason to fail a property.
hypothesis_settings.register_profile("no deadline", deadline=None)
hypothesis_settings.load_profile("no deadline")

LLAMA_LIKE = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
#: Families of the design, then some that are built the same way.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "opt": ("opt", {**LLAMA_LIKE, "ffn_dim": 24, "word_embed_proj_dim": 32}),
    "llama": ("llama", LLAMA_LIKE),
    "llama-gqa": ("llama", {**LLAMA_LIKE, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**LLAMA_LIKE, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}),
    "qwen2": ("qwen2", {**LLAMA_LIKE, "num_key_value_heads": 1}),
    # One key/value head: the norms of queries and of keys have the width of all keys, and still serve every head alike.
    "qwen3": ("qwen3", {**LLAMA_LIKE, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("gemma2", {**LLAMA_LIKE, "num_key_value_heads": 2, "head_dim": 16, "attn_implementation": "eager"}),
}
#: Families that can be written beside them.
MORE_FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "gemma": ("gemma", {**LLAMA_LIKE, "num_key_value_heads": 2, "head_dim": 8}),
    "gemma3": ("gemma3_text", {**LLAMA_LIKE, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}),
    "smollm3": ("smollm3", {**LLAMA_LIKE, "num_key_value_heads": 2}),
    "granite": ("granite", {**LLAMA_LIKE, "num_key_value_heads": 2, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "cohere": ("cohere", {**LLAMA_LIKE, "num_key_value_heads": 2}),
    "cohere2": ("cohere2", {**LLAMA_LIKE, "num_key_value_heads": 2, "sliding_window": 8, "head_dim": 8}),
    # These two have an attention that stays whole.
    "phi3": ("phi3", {**LLAMA_LIKE, "num_key_value_heads": 2}),
    "olmo2": ("olmo2", {**LLAMA_LIKE, "num_key_value_heads": 2}),
}


def tiny_model(family: str, seed: int = 0, channels: int = 24) -> PreTrainedModel:
    """A random model in float64 whose weights and biases are all far from zero."""
    model_type, settings = (FAMILIES | MORE_FAMILIES)[family]
    settings = {**settings, "intermediate_size": channels, **({"ffn_dim": channels} if model_type == "opt" else {})}
    attention = settings.pop("attn_implementation", None)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def load_script(path: str) -> ModuleType:
    """Imports a script of the repository, such as ``train/ppo.py``, which is in no package."""
    file = Path(__file__).parents[1] / path
    name = f"script_{file.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:  # its console stays as wide as it is made, whoever loads it first
            patch.setenv("COLUMNS", "300")
            spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def windows() -> torch.Tensor:
    """int64 [3, 24]."""
    return torch.randint(1, 256, (3, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def save_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny model and its tokenizer as a local folder."""

    def save(family: str = "llama-gqa", with_tokenizer: bool = True) -> Path:
        folder = tmp_path_factory.mktemp(family)
        tiny_model(family).float().save_pretrained(folder)
        if with_tokenizer:
            byte_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_folder(save_tiny: Callable[..., Path]) -> Path:
    return save_tiny()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 30 kB of words, no line of which repeats."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(f"line {i} says {i * i} and not {i * i * i}" for i in range(1000)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data beside the checkout; tests that need it skip, visibly, where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models and policies are faster on one thread, and do not fight with whatever else the machine does."""
    torch.set_num_threads(1)


@pytest.fixture
def other_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default criterion orders heads and channels the other way round, as more threads might order a few."""
    from ffprune_env.pruning.criteria import CRITERIA

    real = CRITERIA["surgeon"]

    def turned_round(*evidence: Any) -> list[Any]:
        return [-scores for scores in real.score(*evidence)]

    monkeypatch.setitem(CRITERIA, "surgeon", dataclasses.replace(real, score=turned_round))


@pytest.fixture
def allocate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs evaluate/allocate.py; returns its exit code, what it printed, and its errors."""
    script = load_script("evaluate/allocate.py")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evaluate/allocate.py", *map(str, words)])
        code = script.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def ppo_script() -> ModuleType:
    return load_script("train/ppo.py")


@pytest.fixture(scope="session")
def whole(ppo_script: ModuleType, tiny_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert run_main(ppo_script, settings(tiny_folder, text_file, run)) == 0
    return run


@pytest.fixture
def compare(
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Runs evaluate/compare.py on a tiny model with a tiny budget."""
    monkeypatch.setenv("COLUMNS", "200")
    module = load_script("evaluate/compare.py")
    flags = {
        "--model": tiny_folder, "--text": text_file, "--out": tmp_path / "out", "--seq-len": 64, "--search-windows": 2,
        "--calibration-windows": 4, "--test-seq-len": 64, "--test-windows": 3, "--dtype": "float32",
        "--evaluations": 12, "--heads": "single",
    }  # fmt: skip

    def run(*words: Any, **changes: Any) -> tuple[int, str, str]:
        settings = flags | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        monkeypatch.setattr(
            sys, "argv", ["compare.py", *(str(x) for pair in settings.items() for x in pair), *map(str, words)]
        )
        code = module.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    run.module, run.flags, run.out = module, flags, tmp_path / "out"  # type: ignore[attr-defined]
    return run
