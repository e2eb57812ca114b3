"""What figures depend on, as digests: weights, tokens, code and versions; a path only says where something was."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: What figures depend on, by name: digests, or what can be read as it is. It is flat, and plain JSON.
Identity = Mapping[str, str]

#: The names that a model has something under.
OF_MODEL = ("dtype", "config", "code", "weights")
#: The names of versions.
OF_VERSIONS = ("ffprune", "source", "torch", "transformers")
_READABLE = ("dtype", "ffprune", "torch", "transformers")
_PLURAL = ("weights",)
_TEXTS = {"finalists text": "text for finalists", "curves text": "text for damage curves"}
_TEXTS |= {"limit text": "text that a limit is checked on"}
_TEXTS |= {"pool text": "text for fresh windows", "watch text": "text that the search is watched on"}
# Of a config, what says where it came from and not what the model computes; the dtype has a name of its own.
_NOT_COMPUTED = {"_name_or_path", "_model_name_or_path", "_commit_hash", "transformers_version", "auto_map"}
_NOT_COMPUTED |= {"architectures", "dtype", "torch_dtype"}
# Code whose version is a name of its own, or that no model brings along.
_COVERED = ("torch", "transformers", "ffprune_env", "accelerate", "builtins")
# Settings with an identity of another name, and those that figures do not depend on beyond rounding.
_NOT_MEASURED = {"model", "text", "test_text", "calibration_text", "dtype", "preset", "run", "save_model"}
_NOT_MEASURED |= {"data_dir", "config", "resume", "baselines", "gguf", "trust_remote_code"}
# What a setting was before there was one, for records that do not name it.
_BEFORE = {"--ridge-scale": json.dumps("relative"), "--heads": json.dumps("single"), "--bos": json.dumps("never")}
_BEFORE |= {"--reward": json.dumps("ppl"), "--openings": json.dumps(0)}
_NOT_MEASURED |= {"device", "device_map", "max_memory", "factor_storage", "batch_size", "workers", "ray_address"}
# A recovery comes after all that a search measures, and says itself what it was.
_NOT_MEASURED |= {"recover", "recovery_text", "lora", "teacher_topk", "save_memory", "recover_minutes"}
_NOT_MEASURED |= {"recover_tokens", "recover_weights", "recover_rate", "recover_cross_entropy", "recover_hidden"}
_NOT_MEASURED |= {"recover_batch", "recover_held_out", "recover_patience", "recover_seed"}
# A limit is looked for when the search is over, on text of its own.
_NOT_MEASURED |= {"max_loss", "max_ppl", "min_reward", "limit_windows"}
# What figures do not depend on: how they are shown, and the scripts, which only a wheel has inside the package.
_NOT_MEASURING = (Path("comparison/report"), Path("comparison/paper_tables"), Path("cli/scripts"))
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


class ChangedError(ValueError):
    """What was measured before was measured of something else than there is now."""


def identity_of_versions() -> dict[str, str]:
    """Versions of ffprune, torch and transformers, and a digest of the source of ffprune: it may have been edited."""
    versions = {"ffprune": _version("ffprune"), "source": source_digest(Path(__file__).parents[1])}
    # Builds of one version for other hardware differ behind the +; other hardware is said elsewhere.
    return {**versions, "torch": _version("torch").partition("+")[0], "transformers": _version("transformers")}


@functools.cache
def source_digest(package: Path) -> str:
    """Digest of all Python files of a package that figures depend on.

    Args:
        package: its folder.
    """
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package)
        if not any(name.is_relative_to(folder) for folder in _NOT_MEASURING):
            digest.update(f"{name.as_posix()}\0{_digest(file.read_bytes())}\0".encode())
    return _short(digest)


def identity_of_model(model: PreTrainedModel) -> dict[str, str]:
    """What a model computes: dtype, config, the code that it brought along, and weights.

    Every byte of every parameter and stored buffer counts: they are summed as integers, by row and by column, where
    they lie, and only the sums leave the device. That takes a fraction of a second for the default model, and what is
    streamed from host memory or disk is read once, as for one forward pass.

    Args:
        model: as it was loaded; ranking and pruning change it.
    """
    dtypes = sorted({str(tensor.dtype) for tensor in model.state_dict().values()})
    return {
        "dtype": ", ".join(dtypes),
        "config": _digest(json.dumps(_computed(model.config.to_diff_dict()), sort_keys=True, default=str).encode()),
        "code": _code_digest(model),
        "weights": weights_digest(model),
    }


def identity_of_texts(texts: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Digests of windows of tokens.

    Args:
        texts: int64 [n, seq_len], by what they are used for, such as ``search``.

    Returns:
        By ``<use> text``.
    """
    return {f"{use} text": _tokens_digest(windows) for use, windows in texts.items()}


def text_names(
    text: str, test_text: str | None, uses: Iterable[str], calibration_text: str | None = None
) -> dict[str, str]:
    """The names of texts by use: where there is another to test or to calibrate on, that use has its name."""
    others = {"test": test_text, "calibration": calibration_text}
    return {use: others.get(use) or text for use in uses}


def identity_of_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings that figures depend on, by flag; not where a model or text lies, nor what hardware is to be used.

    Args:
        settings: plain values by name.

    Returns:
        By ``--<flag>``, in JSON.
    """
    asked = {name: value for name, value in settings.items() if name not in _NOT_MEASURED}
    return {f"--{name.replace('_', '-')}": json.dumps(value) for name, value in asked.items()}


def require_same(
    before: Identity, now: Identity, since: str, advice: str, model: str = "", texts: Mapping[str, str] | None = None
) -> None:
    """Raises ChangedError, in one line that names the first difference, unless all that is known now was so before.

    Args:
        before: what was recorded.
        now: what there is, or a part of it; what is not in it is not compared.
        since: when it was recorded, such as ``runs/x was begun``.
        advice: what to do.
        model: name of the model, for the message.
        texts: names of the texts by use, for the message.
    """
    for name, value in now.items():
        if before.get(name, _BEFORE.get(name)) != value:
            what = change(name, before.get(name), value, model, texts or {})
            raise ChangedError(f"{what} since {since}: {advice}")


def change(name: str, before: str | None, now: str, model: str, texts: Mapping[str, str]) -> str:
    """A difference in words, such as ``the weights of opt-125m have changed``."""
    where = f" of {model}" if model and name in OF_MODEL else ""
    use = name.removesuffix(" text")
    name = _TEXTS.get(name, name)
    if use in texts:
        where = f" {texts[use]}"
    elif name == "source":
        where = " of ffprune"
    if before is None:
        return f"nothing is known of the {name}{where}"
    if name in _READABLE or name.startswith("--"):
        return f"{name}{where} has changed from {before} to {now}"
    return f"the {name}{where} {'have' if name in _PLURAL else 'has'} changed"


def weights_digest(model: nn.Module) -> str:
    """Digest of every parameter and stored buffer of a model as it is now; see :func:`identity_of_model`."""
    digest = hashlib.sha256()
    streamed = dict(_streamed(model))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        stored = streamed.get(name, tensor) if tensor.is_meta else tensor
        if stored.is_meta:  # a model without weights: nothing can be measured with it
            digest.update(b"meta")
        elif stored.numel():
            for sums in _sums(stored.detach()):
                digest.update(sums.cpu().numpy().tobytes())
    return _short(digest)


def _sums(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the bits of a matrix along its rows and columns, int64: exact, and so the same on any device."""
    matrix = tensor.contiguous().view(-1, tensor.shape[-1] if tensor.ndim else 1)
    size = matrix.element_size()
    starts = (matrix.shape[1] * size, matrix.storage_offset() * size)
    width = next(width for width in _WORDS if all(start % width == 0 for start in starts))
    words = matrix.view(_WORDS[width])
    return words.sum(dim=1, dtype=torch.int64), words.sum(dim=0, dtype=torch.int64)


def _streamed(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters that accelerate brings to the device when they are needed, from where they lie."""
    for prefix, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        stored = getattr(hook, "weights_map", None)
        if stored is None:
            continue
        for name, parameter in module.named_parameters(recurse=bool(getattr(hook, "place_submodules", False))):
            if parameter.is_meta:
                yield f"{prefix}.{name}" if prefix else name, stored[name]


def _code_digest(model: nn.Module) -> str:
    """Digest of the source of every class of the model that no package with a version has."""
    names = {type(module).__module__ for module in model.modules()} | {type(getattr(model, "config", model)).__module__}
    digest = hashlib.sha256()
    for name in sorted(name for name in names if name.partition(".")[0] not in _COVERED):
        try:
            source = inspect.getsource(sys.modules[name])
        except (OSError, TypeError, KeyError):  # typed by hand, or compiled
            source = name
        digest.update(f"{_digest(source.encode())}\0".encode())
    return _short(digest)


def _computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and those inside it, without what the function of the model does not depend on."""
    return {
        str(name): _computed(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _NOT_COMPUTED
    }


def _tokens_digest(windows: torch.Tensor) -> str:
    tokens = windows.detach().to("cpu", torch.int64).contiguous()
    return _digest(f"{tuple(tokens.shape)}\0".encode() + tokens.numpy().tobytes())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _digest(content: bytes) -> str:
    return _short(hashlib.sha256(content))


def _short(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:32]
