"""The dense model as a folder, for what reads models from disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ffprune_env.lm.models import load_model
from ffprune_env.lm.quiet import quiet_transformers
from ffprune_env.lm.tied import true_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import PrunableModel


def save_dense(prunable: PrunableModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedModel:
    """Writes the dense model with its tokenizer, and reads it back to the CPU.

    Args:
        prunable: the model, dense now.
        tokenizer: the model's.
        folder: where to.
    """
    prunable.require_dense("write")
    with quiet_transformers():
        with true_config(prunable.model):  # a head that is left out, or written, is looked for
            prunable.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        dtype = str(prunable.model.dtype).removeprefix("torch.")
        return load_model(str(folder), dtype, "cpu")[0]
