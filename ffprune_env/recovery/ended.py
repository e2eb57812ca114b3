"""What a recovery came to, kept in its folder: it is not trained again if nobody could write the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ffprune_env.lm.replacing import replacing

_FACTS, _VALUES = "ended.json", "ended.safetensors"


@dataclass(frozen=True)
class Ended:
    """How training ended.

    Attributes:
        steps: of the optimizer.
        tokens: that went through the model.
        seconds: that it took, in all processes together.
        minutes: that it might take; None where there was no limit.
        better: whether the model is to be another one.
        stopped: why it ended, in words.
    """

    steps: int
    tokens: int
    seconds: float
    minutes: float | None
    better: bool
    stopped: str


def keep_ended(folder: Path, ended: Ended, values: Mapping[str, torch.Tensor]) -> None:
    """Writes down how training ended; what it came to is there before that is said.

    Args:
        folder: of the recovery.
        ended: how.
        values: of what was trained, by name; of a recovery that came to nothing none are written.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    if ended.better:
        with replacing(folder / _VALUES) as scratch:
            save_file({name: x.detach().contiguous() for name, x in values.items()}, scratch)
    with replacing(folder / _FACTS) as scratch:
        scratch.write_text(json.dumps(asdict(ended)), encoding="utf-8")


def read_ended(folder: Path) -> Ended | None:
    """How training ended in a folder, which need not be there; None if it did not, or of what cannot be read."""
    try:
        found: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        ended = Ended(**found)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return ended if not ended.better or (folder / _VALUES).is_file() else None


def read_values(folder: Path) -> dict[str, torch.Tensor]:
    """What training came to, by name, on the CPU.

    Args:
        folder: of a recovery that ended with a better model.
    """
    from safetensors.torch import load_file

    return load_file(folder / _VALUES)


def forget_ended(folder: Path) -> None:
    """Removes what :func:`keep_ended` wrote, if there is any."""
    for name in (_FACTS, _VALUES):
        (folder / name).unlink(missing_ok=True)
