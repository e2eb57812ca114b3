"""The text of a recovery: that of the calibration, or one of its own; never what is searched or tested on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ffprune_env.recovery.passages import Passage, hold_out, load_chat, passages_of
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.texts.chat import is_chat
from ffprune_env.texts.overlap import share_in
from ffprune_env.texts.spread import spread_windows
from ffprune_env.texts.window_settings import WindowSettings
from ffprune_env.texts.windows import NAMED_TEXTS, Split, load_windows, require_text, same_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of what is tested or searched on, so much may stand in the text by chance.
_MOST = 0.01
_PURPOSES = ("test", "search", "finalists", "pool", "watch", "curves")
# Of which training may be stopped by, those first that had the least to do with what the model is.
_STOPPING = ("watch", "pool", "curves", "search")


@dataclass(frozen=True, eq=False)
class RecoveryText:
    """What a model is trained on, and what training is stopped by.

    Attributes:
        name: of the text.
        train: passages to train on.
        held_out: passages to choose the best state by.
    """

    name: str
    train: list[Passage]
    held_out: list[Passage]

    @property
    def every(self) -> list[Passage]:
        """All of them, in the order in which a teacher counts."""
        return [*self.train, *self.held_out]


def require_recovery_text(name: str | None) -> None:
    """Refuses a text that is not there, before a model is loaded for it.

    Args:
        name: of the text; None is the calibration's.

    Raises:
        ValueError: an unknown name.
        OSError: there is no such file.
    """
    if name is not None and not is_chat(name):
        require_text(name)


def load_recovery_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str | None,
    text: str,
    asked: WindowSettings,
    settings: RecoverySettings,
    others: Mapping[str, torch.Tensor],
    test_text: str | None = None,
) -> RecoveryText:
    """Loads text to train on, and to choose the best state by.

    What a calibration saw it fits better than other text, so that training looks worse there than it is. Where that is
    what is trained on, training is stopped by windows that were searched on; of any other text, by a part of it.

    Args:
        model: whose context windows must fit in.
        tokenizer: its tokenizer.
        name: see :func:`ffprune_env.load_windows`, or a file of conversations; None takes the calibration part of the
            text that the model is calibrated on, all of it, and its test part where that is not what is tested on.
        text: what is searched on.
        asked: tokens per window, whether windows begin with BOS, and the text of the calibration if it is another.
        settings: how many tokens are needed, and how many windows are held out.
        others: int64 [n, seq_len] by purpose, what is searched and tested on; ``calibration`` among them may be seen.
        test_text: what is tested on; None is the test part of ``text``.

    Raises:
        ValueError: an unknown name, a text too short, or one that holds what is searched or tested on.
        OSError: the text cannot be read.
    """
    taken, calibrated = name or asked.calibration_text or text, False
    if is_chat(taken):
        passages = load_chat(taken, tokenizer, asked.seq_len)
    else:
        cut = [x for x in (text, asked.calibration_text) if x is not None]  # of these the other parts serve others
        own = taken in NAMED_TEXTS or any(same_text(taken, x) for x in cut)
        calibrated = same_text(taken, asked.calibration_text or text)
        enough = None
        if settings.tokens is not None and taken in NAMED_TEXTS:
            enough = math.ceil(settings.tokens / asked.seq_len) + settings.held_out
        splits: list[Split] = ["calibration"] if own else ["recovery"]
        if own and not same_text(taken, text if test_text is None else test_text):
            splits.insert(0, "train")  # nobody is tested on the rest, unless it is what another file holds
        for split in splits:
            windows = load_windows(
                taken, tokenizer, split, asked.seq_len, enough, or_fewer=True, model=model, bos=asked.bos
            )
            if split == splits[-1] or share_in(others["test"], windows) <= _MOST:
                passages = passages_of(windows)
                break
    require_not_seen(others, passages, taken)
    stopping = next((others[x] for x in _STOPPING if len(others.get(x, ()))), None) if calibrated else None
    if stopping is None:
        return RecoveryText(Path(taken).name, *hold_out(passages, settings.held_out))
    held_out = passages_of(spread_windows(stopping, settings.held_out * stopping.shape[1]))
    return RecoveryText(Path(taken).name, passages, held_out)


def require_not_seen(others: Mapping[str, torch.Tensor], passages: Sequence[Passage], name: str) -> None:
    """Raises ValueError where text to train on is also text that figures come from, whatever its file is called.

    Args:
        others: int64 [n, seq_len] by purpose.
        passages: what is trained on.
        name: of that text, for the message.
    """
    mine = [passage.tokens[None] for passage in passages]
    for purpose in _PURPOSES:
        share = share_in(others[purpose], *mine) if purpose in others else 0.0
        if share > _MOST:
            raise ValueError(
                f"{share:.0%} of the {purpose} text is also recovery text, which {name} gives, at most {_MOST:.0%} is "
                f"allowed: give another --recovery-text, or none, to take that of the calibration"
            )
