"""The plan of windows in words and figures: who looks at which of them, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from ffprune_env.texts.bos import BosProtocol

if TYPE_CHECKING:
    from ffprune_env.texts.window_plan import PlannedWindows

# Every purpose, the windows that serve it, and who looks at them: the plan in one place.
_SEEN_BY = (
    ("ranking", "calibration", "the criterion that orders heads and channels"),
    ("calibration", "calibration", "the ridge fit of the surviving weights, and the one in sequence"),
    ("curves", "curves", "the start (fisher, fisher-iterated, steps after another run), and methods of these names"),
    ("search", "search", "every evaluation of a search: the reward"),
    ("pool", "pool", "the evaluations of a search with --fresh-windows, each a few of them: the reward"),
    ("watch", "watch", "--patience and --eval-every: whether the mean of the policy still gets better"),
    ("finalists", "finalists", "the choice among a search's last candidates, once it is over"),
    ("limit", "limit", "--max-loss and its like, once the search is over: whether a model meets the limit"),
    ("test", "test", "nobody but the figures that are reported"),
)


@dataclass(frozen=True)
class PlanRow:
    """One purpose, as it is shown to people.

    Attributes:
        purpose: what windows are for.
        text: where they come from, and which part of it.
        windows: how many.
        tokens: in all of them.
        which: their indices, among how many.
        seen_by: who looks at them.
    """

    purpose: str
    text: str
    windows: int
    tokens: int
    which: str
    seen_by: str


def plan_rows(
    planned: PlannedWindows, test: torch.Tensor, test_text: str, limit: torch.Tensor | None = None
) -> list[PlanRow]:
    """The whole plan as a table.

    Args:
        planned: what a search looks at.
        test: int64 [n, seq_len], test text.
        test_text: where that comes from.
        limit: int64 [n, seq_len], what a limit would be checked on, if there is enough for that.
    """
    texts, shares = {**planned.texts, "test": test} | ({} if limit is None else {"limit": limit}), planned.shares
    rows = []
    for purpose, key, seen_by in _SEEN_BY:
        windows = texts.get(key)
        if windows is None:
            continue
        if key == "limit":
            left = f"{planned.text}, what is left of its test and search parts"
            rows.append(PlanRow(purpose, left, len(windows), windows.numel(), "", seen_by))
            continue
        if key in ("test", "calibration"):
            text = test_text if key == "test" else f"{planned.calibration_text}, calibration part"
            which = f"{ranges(range(len(windows)))} of {len(windows)}"
        else:
            text, which = f"{planned.text}, search part", f"{ranges(getattr(shares, key))} of {planned.there}"
        rows.append(PlanRow(purpose, text, len(windows), windows.numel(), which, seen_by))
    return rows


def counts(texts: Mapping[str, torch.Tensor]) -> str:
    """How many windows every purpose has, and of how many tokens, in words."""
    return ", ".join(f"{purpose} {len(windows)} of {windows.shape[1]} tokens" for purpose, windows in texts.items())


def windows_made(texts: Mapping[str, torch.Tensor], bos: BosProtocol) -> dict[str, int | str]:
    """Settings of windows as they came out: shorter where the model takes no more, fewer where a text is short.

    Args:
        texts: int64 [n, seq_len] by purpose, as a plan and :func:`ffprune_env.load_test_windows` give them.
        bos: whether they begin with the BOS token.

    Returns:
        By the names of the settings.
    """
    made: dict[str, int | str] = {"seq_len": texts["search"].shape[1], "bos": bos}
    numbers = {"search_windows": "search", "final_windows": "finalists", "curve_windows": "curves"}
    numbers |= {"pool_windows": "pool", "watch_windows": "watch"}
    for name, purpose in {**numbers, "calibration_windows": "calibration", "test_windows": "test"}.items():
        if purpose in texts:
            made[name] = len(texts[purpose])
    return made | ({"test_seq_len": texts["test"].shape[1]} if "test" in texts else {})


def ranges(indices: Sequence[int]) -> str:
    """Indices in ascending order, neighbours as a range: 0-3, 5, 7-8."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(sorted(indices)), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
