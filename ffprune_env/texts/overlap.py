"""How much of one text stands in another: a test text under another name is still the text that was searched on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

# So many tokens in a row are hardly ever the same by chance; of texts of one kind a few repeat phrases.
_RUN = 32
_MOST = 0.01


def require_unseen(test: torch.Tensor, *seen: torch.Tensor) -> None:
    """Raises ValueError where test text is also search or calibration text, whatever its file is called.

    Args:
        test: int64 [n, seq_len], windows of test text.
        *seen: int64 [m, length] each, windows of other texts.
    """
    share = share_in(test, *seen)
    if share > _MOST:
        raise ValueError(
            f"{share:.0%} of the test text is also search or calibration text, at most {_MOST:.0%} is allowed: "
            f"give another text to test on"
        )


def require_apart(texts: Mapping[str, torch.Tensor], calibration_text: str) -> None:
    """Raises ValueError where calibration text is also text that a search looks at, whatever its file is called.

    What is fitted to some windows is better on them than it is, so that no candidate may be measured there.

    Args:
        texts: int64 [n, seq_len] by purpose, ``calibration`` among them.
        calibration_text: its name, for the message.
    """
    calibration = texts["calibration"]
    # Of each purpose by itself: a few windows to search on are little of all.
    for purpose, windows in texts.items():
        share = 0.0 if purpose == "calibration" else share_in(windows, calibration)
        if share > _MOST:
            raise ValueError(
                f"{share:.0%} of the {purpose} text is also calibration text, which {calibration_text} gives, at most "
                f"{_MOST:.0%} is allowed: give another text to calibrate on, or none, to take a part of the first one"
            )


def share_in(text: torch.Tensor, *others: torch.Tensor) -> float:
    """The share of a text that others hold too, by runs of 32 tokens at whatever place.

    Args:
        text: int64 [n, seq_len].
        *others: int64 [m, length] each.

    Returns:
        Between 0 and 1; 0 where windows are shorter than a run, of which nothing can be said.
    """
    mine = _runs(text, step=_RUN)
    theirs = [_runs(other, step=1) for other in others]
    return float(np.isin(mine, np.concatenate(theirs)).mean()) if len(mine) and theirs else 0.0


def unseen(windows: torch.Tensor, *seen: torch.Tensor) -> torch.Tensor:
    """Which windows hold next to nothing of some others, at whatever place: bool [n].

    Args:
        windows: int64 [n, seq_len].
        *seen: int64 [m, length] each.

    Raises:
        ValueError: windows are shorter than a run, of which nothing can be said.
    """
    if windows.shape[1] < _RUN:
        raise ValueError(f"windows of {windows.shape[1]} tokens are too short to tell whether others hold them: {_RUN}")
    theirs = np.unique(np.concatenate([_runs(other, step=1) for other in seen]))
    shares = np.isin(_runs(windows, step=1).reshape(len(windows), -1), theirs).mean(axis=1)
    return torch.from_numpy(shares <= _MOST)


def _runs(windows: torch.Tensor, step: int) -> npt.NDArray[np.uint64]:
    """A number for each run of tokens: equal for equal runs, and hardly ever for others."""
    tokens = windows.cpu().numpy().astype(np.uint64)
    if tokens.shape[1] < _RUN:
        return np.empty(0, dtype=np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, _RUN, dtype=np.uint64) | np.uint64(1)
    starts = tokens.shape[1] - _RUN + 1
    total = np.zeros((len(tokens), starts), dtype=np.uint64)
    for i, factor in enumerate(factors):  # modulo 2⁶⁴
        total += (tokens[:, i : i + starts] + np.uint64(1)) * factor
    return total[:, ::step].ravel()
