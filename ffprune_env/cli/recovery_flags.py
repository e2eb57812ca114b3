"""How a pruned model is recovered: flags that scripts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ffprune_env.recovery.settings import RecoverySettings, Trained, require_bounds
from ffprune_env.recovery.text import RecoveryText, load_recovery_text, require_recovery_text
from ffprune_env.recovery.trained import require_adapters
from ffprune_env.texts.window_settings import WindowSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Which field of RecoverySettings a flag is.
_FIELDS = {
    "recover_tokens": "tokens",
    "recover_minutes": "minutes",
    "recover_weights": "trained",
    "lora": "lora",
    "recover_rate": "learning_rate",
    "recover_cross_entropy": "cross_entropy",
    "recover_hidden": "hidden",
    "recover_batch": "windows_per_step",
    "recover_held_out": "held_out",
    "recover_patience": "patience",
    "teacher_topk": "teacher_topk",
    "save_memory": "save_memory",
    "recover_seed": "seed",
}


@dataclass(frozen=True)
class RecoveryFlags:
    """How a pruned model is trained towards the dense one."""

    recovery_text: str | None = None
    """text to recover on: a name or a file as --text has it, or conversations (.jsonl with messages), of which the
    answers are learned; None takes all of the calibration part of the text that the model was calibrated on and, with
    --test-text, its test part"""
    recover_minutes: float | None = None
    """minutes that a recovery may take; None: no limit"""
    recover_tokens: int | None = None
    """tokens that go through the model, the text once more where it ends; None: the text once or, with
    --recover-minutes, as often as there is time"""
    recover_weights: Trained = "all"
    """which weights are trained: all (but the embeddings) or outputs (norms and output projections)"""
    lora: int | None = None
    """rank of adapters that are trained in the place of the weights, and merged in the end: what a large model needs on
    one GPU; None: no adapters"""
    recover_rate: float | None = None
    """learning rate of a recovery; None: 0.0002, of adapters 0.001"""
    recover_cross_entropy: float = 0.0
    """share of the loss of a recovery that is the cross-entropy of the text; the rest is KL to the dense model"""
    recover_hidden: float = 0.0
    """weight of the relative squared error of hidden states in the loss of a recovery; 0: none"""
    recover_batch: int = 1
    """windows, or conversations, behind one step of a recovery; what does not fit at once is accumulated. In so little
    text many small steps are worth more than a few large ones"""
    recover_held_out: int = 4
    """windows that are not trained on: the state with the lowest loss on them is kept"""
    recover_patience: int = 0
    """looks at the held-out loss, of 5 in all, without a better one after which a recovery ends; 0: never early. The
    loss falls most at the end, where the rate does"""
    recover_seed: int = 0
    """of the order in which a recovery reads its windows, and of adapters"""
    teacher_topk: int | None = None
    """let the dense model write down so many log-probabilities per token, and leave memory before the pruned model
    comes; None: both are there at once"""
    save_memory: bool = False
    """compute what is inside the layers again in the backward pass of a recovery, instead of keeping it"""

    def recovery_settings(self) -> RecoverySettings:
        """The same in the words of the library; ValueError, in the words of the command line, for what cannot be."""
        values = {field: getattr(self, flag) for flag, field in _FIELDS.items()}
        require_bounds(values, {field: f"--{flag.replace('_', '-')}" for flag, field in _FIELDS.items()})
        if self.lora is not None:
            if self.recover_weights != "all":
                raise ValueError(f"--lora trains adapters: leave out --recover-weights {self.recover_weights}")
            require_adapters()
        if self.teacher_topk is not None and self.recover_hidden:
            raise ValueError("--recover-hidden needs the dense model: leave out --teacher-topk")
        return RecoverySettings(**values)

    def require_recovery_text(self) -> None:
        """Raises OSError or ValueError for a text that is not there: said before a model is loaded for it."""
        require_recovery_text(self.recovery_text)

    def load_recovery_text(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        asked: WindowSettings,
        others: Mapping[str, torch.Tensor],
        test_text: str | None,
    ) -> RecoveryText:
        """The text to recover on; see :func:`~ffprune_env.recovery.text.load_recovery_text`."""
        settings = self.recovery_settings()
        return load_recovery_text(model, tokenizer, self.recovery_text, text, asked, settings, others, test_text)


@dataclass(frozen=True)
class RecoverFlags(RecoveryFlags):
    """Whether it is recovered at all."""

    recover: bool = False
    """train the pruned model towards the dense one in the end, for --recover-minutes or once over the text
    (docs/recovery.md)"""
