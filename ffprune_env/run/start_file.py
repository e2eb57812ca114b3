"""``start.json``: the scores that a run started from, so that one that was cut off does not look for them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffprune_env.search.starts.start import StartScores

_PARTS = ("targets", "known")


def start_content(scores: StartScores) -> dict[str, Any]:
    """What the file holds: [N] scores by sparsity, of the targets and of what else is known."""
    return {name: {str(at): x for at, x in getattr(scores, name).items()} for name in _PARTS}


def read_start(file: Path, targets: Sequence[float], n_units: int) -> StartScores | None:
    """Reads the scores that a run started from.

    Args:
        file: of the run.
        targets: its target sparsities.
        n_units: N.

    Returns:
        The scores; None if the run was cut off before it had any.

    Raises:
        ValueError: the file is damaged, or of a search for other sparsities.
    """
    if not file.exists():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        parts = {name: {float(at): np.array(x, dtype=np.float64) for at, x in saved[name].items()} for name in _PARTS}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged, remove it to look for the start again: {error!r}") from error
    if not all(x.shape == (n_units,) and np.isfinite(x).all() for part in parts.values() for x in part.values()):
        raise ValueError(f"{file} does not hold {n_units} scores per target: remove it to look for the start again")
    held = parts["targets"]
    if any(target not in held for target in targets):
        was, now = (", ".join(map(str, of)) for of in (held, targets))
        raise ValueError(
            f"{file} is of a search for sparsity {was}, and this one is for {now}: what a budget counts has changed, "
            f"or the file is of another run; start a new run, without --resume"
        )
    return StartScores(**parts)
