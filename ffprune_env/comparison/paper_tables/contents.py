"""What the four tables hold: sparsities, rows and the method behind each, in the order of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ffprune_env.comparison.plan import Key, plan
from ffprune_env.comparison.rebuilt import REBUILDERS
from ffprune_env.methods.registry import METHODS
from ffprune_env.methods.warm_start import warm_name

#: The method behind the rows called Ours.
OURS = "ppo-paper"
#: The search that the paper compares itself with.
EVOLUTION = "eas"
#: Calibration text of Ours (C4), beside which everything else is calibrated on the text that is searched on.
OTHER_TEXT = "c4"


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        label: what it is called.
        method: whose cells it shows.
        cut: whether it shows the model that is only cut, not the one that is calibrated in the end.
        other_text: whether it is calibrated on :data:`OTHER_TEXT`, or what the user has in its place.
    """

    label: str
    method: str
    cut: bool = False
    other_text: bool = False


@dataclass(frozen=True)
class PaperTable:
    """One of the tables.

    Attributes:
        number: in the paper.
        caption: what it shows.
        lines: the rows below the dense model, by sparsity, ascending.
        zero_shot: whether it shows accuracies, not perplexities.
        several: whether models stand beside each other in it; otherwise each has a table.
    """

    number: int
    caption: str
    lines: Mapping[float, tuple[Line, ...]]
    zero_shot: bool = False
    several: bool = False

    @property
    def sparsities(self) -> tuple[float, ...]:
        """All σ, ascending."""
        return tuple(self.lines)

    def keys(self, seeds: int, other_text: bool = False) -> list[Key]:
        """The cells behind it, in the order in which they are measured.

        Args:
            seeds: how many times each search is run.
            other_text: those that are calibrated on the other text, and no others.
        """
        shown = {
            (line.method, sparsity)
            for sparsity, lines in self.lines.items()
            for line in lines
            if line.other_text == other_text
        }
        known = (*METHODS, *REBUILDERS, *(method for method, _ in sorted(shown)))
        methods = [name for name in dict.fromkeys(known) if any(name == method for method, _ in shown)]
        return [key for key in plan(methods, self.sparsities, seeds) if (key.method, key.sparsity) in shown]


_SLICEGPT, _FLAP, _SVD_LLM = Line("SliceGPT", "slicegpt"), Line("FLAP", "flap-bias"), Line("SVD-LLM", "svd-llm")
_EVOLUTION = Line("evolution", EVOLUTION)
_OURS_CUT, _OURS = Line("Ours", OURS, cut=True), Line("Ours (Calib)", OURS)
_WARM = Line("Ours (Calib), warm-started", warm_name(OURS))

TABLES: dict[int, PaperTable] = {
    table.number: table
    for table in (
        PaperTable(
            1,
            "Zero-shot accuracy (%) on seven common-sense tasks at 20 % sparsity.",
            {0.2: (_SLICEGPT, _FLAP, _SVD_LLM, _EVOLUTION, Line("Ours (C4)", OURS, other_text=True), _OURS)},
            zero_shot=True,
        ),
        PaperTable(
            2,
            "Perplexity at 0, 20 and 30 % sparsity.",
            {
                0.2: (_SLICEGPT, _FLAP, _SVD_LLM, _EVOLUTION, _OURS_CUT, _OURS),
                0.3: (_SLICEGPT, _FLAP, _SVD_LLM, _EVOLUTION, _OURS_CUT, _OURS),
            },
            several=True,
        ),
        PaperTable(
            3,
            "What calibration and search are worth alone and together: perplexity at 20 % sparsity.",
            {
                0.2: (
                    Line("Calib.", "uniform"),
                    Line("Search", OURS, cut=True),
                    Line("Search + Calib.", OURS),
                )
            },
            several=True,
        ),
        PaperTable(
            4,
            "Cost of the search and in all, in device-hours, and perplexity: at 20 % sparsity, and at 30 %, where ours "
            "is warm-started from 20 %.",
            {0.2: (_SLICEGPT, _FLAP, _EVOLUTION, _OURS), 0.3: (_SLICEGPT, _FLAP, _EVOLUTION, _WARM)},
        ),
    )
}
