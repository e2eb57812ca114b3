"""Checkpoints of a recovery: which is the newest whole one, and how long it took to get there."""

from __future__ import annotations

import json
from pathlib import Path

# The first is ours, written when those of Trainer are there; the second is one of those.
_SECONDS, _STATE = "seconds.json", "trainer_state.json"


def keep_seconds(checkpoint: Path, seconds: float) -> None:
    """Writes down beside a checkpoint how long it took to get there; from then on it is whole.

    Args:
        checkpoint: its folder.
        seconds: that the recovery took so far, in all processes together.
    """
    (checkpoint / _SECONDS).write_text(json.dumps(seconds), encoding="utf-8")


def last_checkpoint(folder: Path) -> tuple[Path, float] | None:
    """The newest checkpoint that was written whole, and the seconds that it took to get there; None if there is none.

    Args:
        folder: of checkpoints, which need not be there.
    """
    found = [x.parent for x in folder.glob(f"checkpoint-*/{_SECONDS}") if (x.parent / _STATE).is_file()]
    if not found:
        return None
    newest = max(found, key=lambda path: int(path.name.partition("-")[2]))
    return newest, float(json.loads((newest / _SECONDS).read_text(encoding="utf-8")))
