"""``best.json`` of a run, or of one of its sparsities, that has ended."""

from __future__ import annotations

from collections.abc import Mapping
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


def fell_back(best: Mapping[str, Any], policy: str = "chosen", asked: str | None = None) -> bool:
    """Whether the model of a policy is not calibrated as was asked for: tables and pictures mark it.

    Args:
        best: what a run chose and measured.
        policy: its name there.
        asked: how it was to be calibrated, where what the run measured does not say that; None: nobody knows.
    """
    calibrated = best.get("calibration", {}).get(policy, {})
    wanted = best.get("calibration_asked", asked)
    return wanted is not None and calibrated.get("calibration") not in (None, wanted)
