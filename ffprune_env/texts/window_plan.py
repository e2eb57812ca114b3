"""Which windows of text serve which purpose: one plan, in which no token of text is seen for two of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ffprune_env.budget.van_der_corput import van_der_corput
from ffprune_env.texts.overlap import require_apart
from ffprune_env.texts.spread import middles
from ffprune_env.texts.window_settings import WindowSettings
from ffprune_env.texts.windows import load_windows, same_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shares:
    """Who gets which windows of the search part of a text, by index; no window has two owners.

    Attributes:
        search: what candidates are measured on. The first few are as far apart as all of them.
        finalists: what the last candidates are ranked on, in such an order too; neither start nor search sees them.
        curves: what the start makes its damage curves from, in the order of the text.
        pool: what the windows of every rollout are drawn from, if they are drawn anew; in the order of the text.
        watch: what the policy's mean is measured on while it is trained, if somebody asks for that.
    """

    search: tuple[int, ...]
    finalists: tuple[int, ...]
    curves: tuple[int, ...]
    pool: tuple[int, ...] = ()
    watch: tuple[int, ...] = ()


def share_out(
    there: int,
    search_windows: int,
    final_windows: int = 0,
    curve_windows: int = 0,
    pool_windows: int = 0,
    watch_windows: int = 0,
    *,
    watch_gives_way: bool = False,
) -> Shares:
    """Shares windows out, every purpose spread over the whole text.

    Where there are fewer than asked for, the search has its own in full, and so has who watches it. The pool gets
    fewer, down to as many as the search has; then the curves, down to as many as the finalists have, and then both.
    Who gives way takes what the pool leaves, or up to a quarter of what it has beyond that; maybe nothing.

    Args:
        there: windows that there are.
        search_windows: windows to search on, at least 1.
        final_windows: windows for finalists.
        curve_windows: windows for damage curves.
        pool_windows: windows to draw from, if any at least ``search_windows``.
        watch_windows: windows to watch the search on.
        watch_gives_way: whether others come before that.

    Raises:
        ValueError: somebody would get none of what was asked for; the message says what is needed.
    """
    if min(search_windows - 1, final_windows, curve_windows, watch_windows) < 0:
        raise ValueError(
            f"{search_windows}, {final_windows} and {curve_windows} were asked for, 1, 0 and 0 are the fewest"
        )
    if pool_windows and pool_windows < search_windows:
        raise ValueError(f"{pool_windows} were asked for to draw from, {search_windows} are the fewest")
    least = min(pool_windows, search_windows)
    left = there - search_windows - least - (0 if watch_gives_way else watch_windows)
    finals = max(0, min(final_windows, max(left - curve_windows, left // 2)))
    curves = max(0, min(curve_windows, left - finals))
    if left < 0 or finals < min(final_windows, 1) or curves < min(curve_windows, 1):
        others = min(final_windows, 1) + min(curve_windows, 1)
        more = f" to search on, and {others} more are needed for finalists and damage curves" if others else ""
        needed = least + (0 if watch_gives_way else watch_windows)
        further = f", {needed} more to draw from and to watch the search on" if needed else ""
        raise ValueError(f"{search_windows} were asked for{more}{further}")
    spare = left - finals - curves
    if watch_gives_way:
        watch_windows = min(watch_windows, max(least + spare - pool_windows, spare // 4))
        spare -= watch_windows
    free = list(range(there))
    chosen = []
    for n in (finals, search_windows, curves, watch_windows, min(pool_windows, least + spare)):
        mine = [free[i] for i in middles(len(free), n)]  # spread over the whole text
        free = [i for i in free if i not in mine]
        chosen.append(mine)
    finalists, search, looked_at, watch, pool = chosen
    return Shares(
        _far_apart_first(search), _far_apart_first(finalists), tuple(looked_at), tuple(pool), _far_apart_first(watch)
    )


@dataclass(frozen=True)
class PlannedWindows:
    """Windows of a text, shared out.

    Attributes:
        text: its name.
        calibration_text: the name of the one that ranking and calibration see; the same one, or another.
        there: windows of the search part that were shared out, at equal distances, or all that it has.
        shares: who got which of them.
        texts: int64 [n, seq_len] by purpose: ``search``, ``finalists``, ``curves``, ``pool`` and ``watch``, if asked
            for, and ``calibration``, from the calibration part of its text, which is what the ranking sees too.
    """

    text: str
    calibration_text: str
    there: int
    shares: Shares
    texts: dict[str, torch.Tensor]


def load_planned_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    asked: WindowSettings,
) -> PlannedWindows:
    """All windows that a search looks at; test text is another part, or another text.

    Args:
        model: what the windows are for: one whose context is shorter uses its own maximum.
        tokenizer: its tokenizer.
        text: see :func:`ffprune_env.load_windows`.
        asked: tokens per window, and windows for every purpose; fewer for the last candidates and for damage curves
            where the text is short, which is logged, and for ranking and calibration, which take what there is; and
            the text that those two see, if it is another one.

    Raises:
        ValueError: an unknown name, a text too short, or another text to calibrate on that holds what is searched on.
        OSError: the text cannot be read.
    """
    wanted = asked.windows_wanted
    how = partial(load_windows, tokenizer=tokenizer, or_fewer=True, model=model, bos=asked.bos)
    pool = how(text, split="search", seq_len=asked.seq_len, n_windows=sum(wanted.values()))
    seq_len = pool.shape[1]
    try:
        shares = share_out(len(pool), *wanted.values(), watch_gives_way=asked.watch_gives_way)
    except ValueError as error:
        raise ValueError(
            f"text {text} (search part) has {len(pool)} windows of {seq_len} tokens, {error}: ask for fewer or shorter "
            f"windows, or give a longer text"
        ) from error
    got = {purpose: len(indices) for purpose, indices in vars(shares).items()}
    if got != wanted:
        logger.warning(
            "text %s (search part) has %d windows of %d tokens, %d were asked for: damage curves get %d of %d, "
            "finalists %d of %d%s",
            *(text, len(pool), seq_len, sum(wanted.values())),
            *(got["curves"], wanted["curves"], got["finalists"], wanted["finalists"]),
            (f", fresh windows are drawn from {got['pool']} of {wanted['pool']}" if wanted["pool"] else "")
            + (f", the search is watched on {got['watch']} of {wanted['watch']}" if wanted["watch"] else ""),
        )
    texts = {purpose: pool[list(indices)] for purpose, indices in vars(shares).items() if indices}
    calibrated_on = text if same_text(text, asked.calibration_text) else str(asked.calibration_text)
    texts["calibration"] = how(calibrated_on, split="calibration", seq_len=seq_len, n_windows=asked.calibration_windows)
    if calibrated_on != text:
        require_apart(texts, calibrated_on)
    return PlannedWindows(text, calibrated_on, len(pool), shares, texts)


def _far_apart_first(indices: list[int]) -> tuple[int, ...]:
    """The indices in an order in which every prefix is spread over the whole (van der Corput)."""
    return tuple(indices[i] for i in sorted(range(len(indices)), key=van_der_corput))
