"""How a pruned model was calibrated, in a word that goes into files and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ffprune_env.pruning.prunable import Calibration

#: ``none``: only cut, or rebuilt; ``ridge``: Eqs. 6-7 alone; ``sequential``: after that in sequence; ``flap-bias``:
#: FLAP's bias compensation.
CalibrationKind = Literal["none", "ridge", "sequential", "flap-bias"]

#: Behind results that were not calibrated as it was asked for.
FELL_BACK_MARK = "‡"
_FELL_BACK = (
    "calibrated by Eqs. 6-7 alone, not in sequence as asked for: memory ran out, or the pruned model collapsed. "
    "Not compared in % with models that were."
)
#: What every table says of them.
FELL_BACK_NOTE = f"{FELL_BACK_MARK} {_FELL_BACK}"
#: The same below a table whose rows are means over seeds.
ONE_SEED_FELL_BACK = f"{FELL_BACK_MARK} With one seed at least {_FELL_BACK}"


def calibration_kind(calibration: Calibration | None) -> CalibrationKind:
    """The word for what the surviving weights were re-fitted with."""
    from ffprune_env.pruning.flap_bias import FlapBias  # reports, which know the words alone, do without torch
    from ffprune_env.pruning.sequential import SequentialCalibration

    if calibration is None:
        return "none"
    if isinstance(calibration, FlapBias):
        return "flap-bias"
    return "sequential" if isinstance(calibration, SequentialCalibration) else "ridge"
