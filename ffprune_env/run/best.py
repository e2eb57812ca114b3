"""``best.json`` of a run, or of one of its sparsities, that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ffprune_env.run.folder import RunFolder
from ffprune_env.run.strict_json import as_measured


def read_best(part: RunFolder, run: Path) -> dict[str, Any]:
    """What a run chose and measured, infinite figures as they were.

    Args:
        part: folder of one of its sparsities; of a run with one sparsity, its own.
        run: the folder that it is gone on with by.

    Raises:
        ValueError: the file is damaged, or the run has not ended.
    """
    best = part.read_json("best.json")
    if best is None or not isinstance(best.get("chosen"), dict):
        file = part.path / "best.json"
        what = f"there is no {file}" if best is None else f"{file} does not say what it chose"
        raise ValueError(f"{run} has not ended: {what}; go on with it by --resume {run}")
    return as_measured(best)
