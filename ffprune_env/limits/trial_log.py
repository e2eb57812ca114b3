"""``limit.jsonl``: the models that a search for a limit has measured, so that one that was cut off goes on there."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.lm.identity import Identity
from ffprune_env.pruning.calibration_kind import CalibrationKind

_Key = tuple[tuple[int, ...], bool]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of one model.

    Attributes:
        calibration: what its weights were re-fitted with.
        differences: float64 [n], by how much its mean loss is higher than the dense model's, in nats, window by window.
    """

    calibration: CalibrationKind
    differences: FloatArray


class TrialLog:
    """Models that were measured on the same windows, of the same dense model, by the same code; none is twice.

    Lines of anything else stay in the file, and are not looked at.

    Args:
        path: the file; it may not exist yet. A line that was cut off is dropped.
        identity: all that the figures depend on but what is kept and how it is calibrated in the end: the run, the
            versions, the windows that the limit is checked on.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self._of = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:32]
        content = path.read_bytes() if path.exists() else b""
        self._torn = bool(content) and not content.endswith(b"\n")
        self._known = dict(filter(None, (_read(line, self._of) for line in content.splitlines())))

    def find(self, kept: IntArray, written: bool) -> Measured | None:
        """What was measured of a model; None of one that was not.

        Args:
            kept: int [N], groups kept per unit.
            written: whether it was calibrated as a model that is written would be.
        """
        return self._known.get(_key(kept, written))

    def note(self, kept: IntArray, written: bool, measured: Measured) -> None:
        """Keeps what was measured of a model.

        Args:
            kept: int [N], groups kept per unit.
            written: whether it was calibrated as a model that is written would be.
            measured: of it.

        Raises:
            OSError: it cannot be written.
        """
        finite = [float(x) if math.isfinite(x) else None for x in measured.differences]
        line = {
            "of": self._of,
            "kept": [int(k) for k in kept],
            "written": written,
            "calibration": measured.calibration,
            "differences": finite,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self._torn else "") + json.dumps(line, allow_nan=False) + "\n")
        self._known[_key(kept, written)], self._torn = measured, False


def _key(kept: IntArray, written: bool) -> _Key:
    return tuple(int(k) for k in kept), written


def _read(line: bytes, of: str) -> tuple[_Key, Measured] | None:
    """A model and what was measured of it; None of a line that was cut off, or is of something else."""
    try:
        content = json.loads(line)
        if content["of"] != of or content["calibration"] not in get_args(CalibrationKind):
            return None
        differences = [math.inf if x is None else float(x) for x in content["differences"]]
        key = tuple(int(k) for k in content["kept"]), bool(content["written"])
        return key, Measured(content["calibration"], np.array(differences, dtype=np.float64))
    except (ValueError, TypeError, KeyError):
        return None
