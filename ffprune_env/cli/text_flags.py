"""Flags of texts and of the windows that are cut from them, each declared once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from ffprune_env.lm.model_names import DEFAULT_MODEL
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.texts.bos import Bos
from ffprune_env.texts.default_text import AUTO_TEXT, text_for
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.window_settings import WindowLength, WindowSettings
from ffprune_env.texts.windows import load_test_windows, require_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class OneTextFlags:
    """A text."""

    text: str = AUTO_TEXT
    """python-docs, wikitext2, c4, or a .txt, .jsonl, .csv, .parquet, .raw, ... file: what is measured on or, with
    --test-text beside it, what is searched and calibrated on. auto takes wikitext2 for the known names of the hub
    (opt-..., llama-..., mistral-7b) and python-docs for all other models"""

    def settled(self) -> Self:
        """With the text that goes with the model in the place of ``auto``."""
        model = getattr(self, "model", getattr(self, "measured", DEFAULT_MODEL))
        return replace(self, text=text_for(str(model), self.text))


@dataclass(frozen=True)
class WindowsFlags(OneTextFlags, WindowLength):
    """Windows of a text that serve one purpose."""

    windows: int | None = None
    """windows of --text, from its beginning; None takes all"""


@dataclass(frozen=True)
class TestedTextFlags:
    """The text that figures are reported of."""

    test_text: str | None = None
    """test text; by default the test part of the text that is searched on. No search sees it"""
    test_seq_len: int = 2048
    """tokens per window of test text"""
    test_windows: int | None = 8
    """windows of test text, from its beginning; None takes all. Of fewer than 4 there is no interval"""

    def require_windows(self) -> None:
        """Raises ValueError, in the words of the command line, for windows that cannot be."""
        require_in_range("--test-windows", self.test_windows, 1)
        require_in_range("--test-seq-len", self.test_seq_len, 2)

    def load_test_beside(
        self, text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bos: Bos
    ) -> torch.Tensor:
        """The windows of test text: int64 [n, seq_len]; see :func:`ffprune_env.load_windows`.

        Args:
            text: what is searched and calibrated on, whose test part it is by default.
            model: whose context windows must fit in.
            tokenizer: its tokenizer.
            bos: whether windows begin with its BOS token.
        """
        return load_test_windows(
            text, self.test_text, tokenizer, self.test_seq_len, self.test_windows, model=model, bos=bos
        )


@dataclass(frozen=True)
class TextFlags(TestedTextFlags, OneTextFlags):
    """The text that a model is searched and calibrated on, and the one it is tested on."""

    def require_texts(self) -> None:
        """Raises OSError or ValueError for a text that is not there: said before a model is loaded for it."""
        for name in filter(None, (self.text, self.test_text)):
            require_text(name)

    @property
    def tested_on(self) -> str:
        """Where test text comes from."""
        return self.test_text or self.text

    def load_test(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bos: Bos) -> torch.Tensor:
        """The windows of test text: int64 [n, seq_len]; see :meth:`load_test_beside`."""
        return self.load_test_beside(self.text, model, tokenizer, bos)

    def load_texts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: WindowSettings
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The windows that a search looks at, int64 [n, seq_len] by purpose, and those of test text, which it does not.

        Args:
            model: whose context windows must fit in.
            tokenizer: its tokenizer.
            asked: windows for every purpose but the test.

        Raises:
            ValueError: a text is too short, or test text is also search or calibration text.
            OSError: a text cannot be read.
        """
        test = self.load_test(model, tokenizer, asked.bos)
        planned = load_planned_windows(model, tokenizer, self.text, asked)
        require_unseen(test, *planned.texts.values())
        return planned.texts, test
