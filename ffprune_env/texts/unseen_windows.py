"""Windows that nobody has seen: what is left of a text once search, calibration and test have theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ffprune_env.lm.intervals import LEAST_WINDOWS
from ffprune_env.texts.bos import Bos
from ffprune_env.texts.overlap import unseen
from ffprune_env.texts.spread import middles
from ffprune_env.texts.windows import Split, has_unknown, load_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Where a text is cut otherwise than it was, windows that were seen are in two of those that are looked through.
_CUT_OTHERWISE = 2


def load_unseen_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    seen: Mapping[str, torch.Tensor],
    n_windows: int,
    bos: Bos = "auto",
) -> torch.Tensor:
    """Windows of a text that are in none of those that were seen; fewer than asked for where there are no more.

    They come from the test part of the text, behind what is reported of it, and where that is too short from what is
    left of the search part. So a run that has ended has such windows too, and those that it saw stay what they were.
    They are text of the kind that models are fitted to, without ``<unk>`` also where the reported text keeps it.

    Args:
        model: what the windows are for.
        tokenizer: its tokenizer.
        text: what is searched on; see :func:`~ffprune_env.load_windows`.
        seen: int64 [m, length] by purpose: everything that a run looks at, test text among it. Those of ``search`` say
            how long windows are.
        n_windows: how many.
        bos: whether windows begin with the BOS token.

    Returns:
        int64 [n ≤ n_windows, seq_len].

    Raises:
        ValueError: there are fewer than an interval needs.
        OSError: the text cannot be read.
    """
    seq_len = seen["search"].shape[1]
    reported = math.ceil(seen["test"].numel() / seq_len)
    parts: tuple[tuple[Split, int | None], ...] = (("limit", reported + n_windows + _CUT_OTHERWISE), ("search", None))
    found = seen["search"][:0]
    for split, most in parts:
        if len(found) >= n_windows:
            break
        try:
            windows = load_windows(text, tokenizer, split, seq_len, most, or_fewer=True, model=model, bos=bos)
        except ValueError:  # the part has no window
            continue
        free = unseen(windows, *seen.values(), *([found] if len(found) else []))
        if split == "limit" and has_unknown(text):  # what is reported reads otherwise there, so that it is not found
            as_reported = load_windows(text, tokenizer, "test", seq_len, most, or_fewer=True, model=model, bos=bos)
            free[: _reach(as_reported, seen["test"])] = False
        left = windows[free]
        found = torch.cat([found, _at_most(left, n_windows - len(found))])
    if len(found) < LEAST_WINDOWS:
        raise ValueError(
            f"text {text} has {len(found)} windows of {seq_len} tokens that neither search nor calibration nor test "
            f"sees, {LEAST_WINDOWS} are the fewest to check a limit on: give a longer text, or fewer --test-windows"
        )
    return found


def _reach(windows: torch.Tensor, reported: torch.Tensor) -> int:
    """How many windows of a text one has to pass before nothing of what is reported comes any more.

    With ``<unk>`` a text has more tokens, so that as many windows without it hold no less of it.

    Args:
        windows: int64 [n, seq_len], from the beginning of the text and with ``<unk>``.
        reported: int64 [m, length].
    """
    hit = (~unseen(windows, reported)).nonzero()
    return int(hit.max()) + 1 if len(hit) else 0


def _at_most(windows: torch.Tensor, n: int) -> torch.Tensor:
    """At most n of some windows, in the middles of equal stretches of them."""
    return windows if len(windows) <= n else windows[middles(len(windows), n)]
