"""What made a result: versions, revision, command line, and the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.lm.devices import devices_held

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LIBRARIES = ("ffprune", "torch", "transformers", "gymnasium", "stable-baselines3", "numpy", "datasets")


def provenance() -> dict[str, Any]:
    """What made a result: command line, versions, platform and git revision."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "git_revision": _git_revision(),
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the checkout this file is part of; None outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    settings: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        # An installed package may lie inside a checkout of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], **settings)
        return str(subprocess.run([*git, "rev-parse", "HEAD"], **settings).stdout).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def machine_facts(model: PreTrainedModel) -> dict[str, Any]:
    """What figures depend on beyond rounding, or in rounding: where a model runs, in what numbers, and on which Python.

    Args:
        model: as it was loaded.
    """
    device = model.device
    return {
        "device": str(device),
        "devices": devices_held(model),
        "dtype": str(model.dtype),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),  # its language reference is a text
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }
