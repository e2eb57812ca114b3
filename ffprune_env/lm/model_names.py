"""What a user calls a model, to a folder or a hub repository that holds one."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ffprune_env.lm.hub import is_cached, require_hub
from ffprune_env.lm.pruned_folder import check_pruned, is_pruned, model_inside
from ffprune_env.lm.stored_tensors import WEIGHT_FILES, weight_file

DEFAULT_MODEL = "smollm2-135m"
#: Short names and the hub repositories they stand for.
HUB_MODELS = {
    **{f"opt-{size}": f"facebook/opt-{size}" for size in ("125m", "1.3b", "2.7b", "6.7b")},
    **{f"llama-{size}": f"huggyllama/llama-{size}" for size in ("7b", "13b")},
    **{f"llama-2-{size}": f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b")},
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def resolve_name(name: str) -> str:
    """Turns a name other than the default model's into a folder or a hub id that ``from_pretrained`` takes.

    A name with a slash is a folder if the folder exists; it is never looked for on the hub if its parent exists here,
    since a mistyped folder must not become somebody's model. What was downloaded before is found all the same.

    Args:
        name: a short name, a local folder, or a hub id ``owner/repository``.

    Raises:
        ValueError: nothing has that name; the message gives near ones.
        OSError: the folder holds no whole model, or the hub is needed and out of reach.
    """
    if Path(name).is_dir():
        return str(_checked_folder(Path(name)))
    repository = HUB_MODELS.get(name, name if _HUB_ID.fullmatch(name) else None)
    if repository is not None and is_cached(repository):
        return repository
    if Path(name).is_file():
        raise ValueError(f"model {name} is a file: give the folder that holds it, {Path(name).parent}")
    if repository is None or (repository == name and Path(name).parent.is_dir()):
        raise ValueError(_unknown(name))
    require_hub(f"model {name}", f"{DEFAULT_MODEL} or a local folder")
    return repository


def _unknown(name: str) -> str:
    if "/" not in name:
        known = [DEFAULT_MODEL, *HUB_MODELS]
        near = difflib.get_close_matches(name.lower(), [*known, *_folders(Path())], n=3) or known
        return (
            f"unknown model {name!r}: neither a known name, a local folder nor a hub id owner/repository; "
            f"near names: {', '.join(near)}"
        )
    absent = Path(name)
    while not absent.parent.is_dir():
        absent = absent.parent
    others = _folders(absent.parent)
    near = difflib.get_close_matches(absent.name, others, n=3, cutoff=0.5)
    shown = ", ".join(str(absent.parent / x) for x in near or others[:3])
    hint = f"near ones are {shown}" if near else f"{absent.parent} holds {shown or 'no folders'}"
    where = "" if not _HUB_ID.fullmatch(name) else f"; if the hub's is meant, first run: hf download {name}"
    return f"unknown model {name!r}: there is no folder {absent}; {hint}{where}"


def _folders(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} is not a model: it holds no config.json{model_inside(folder)}")
    if (folder / "adapter_config.json").is_file():
        raise OSError(
            f"{folder} holds an adapter (adapter_config.json) beside a model; merge it into the weights first"
        )
    if not any(folder.glob("tokenizer*")) and not (folder / "vocab.json").is_file():
        raise OSError(f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json); save one there")
    if weight_file(folder) is None:
        raise OSError(f"{folder} holds no weights that are read, which are {', '.join(WEIGHT_FILES)}; convert others")
    if is_pruned(folder):
        check_pruned(folder)
    return folder
