"""A real, smaller checkpoint: written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy.typing as npt

from ffprune_env.export.model_card import CardFacts, model_card
from ffprune_env.export.smaller_model import smaller_model
from ffprune_env.export.writable import why_not_saved
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.quiet import quiet_transformers
from ffprune_env.lm.replacing import replacing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import Calibration, PrunableModel

_SHARD = "5GB"


def save_pruned(
    prunable: PrunableModel,
    kept: npt.ArrayLike,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calibration: Calibration | None = None,
    facts: CardFacts | None = None,
    checked: bool = True,
) -> None:
    """Writes the pruned model as a folder in Hugging Face layout, with smaller tensors.

    Heads and channels are written in their original order. The folder holds weights (safetensors, shards of 5 GB), a
    config with the sizes of every layer, the modelling code that ``trust_remote_code=True`` runs where ffprune_env is
    not installed, the tokenizer, and a model card. It appears under its name when all of it is written.

    Args:
        prunable: the ranked model, dense now.
        kept: int [N], groups kept per unit.
        folder: where to; must not exist, or be empty.
        tokenizer: the model's, to be written beside it.
        calibration: re-fits the output projections; biases that it makes need a place in the family's configuration.
        facts: what the model card tells about where the model comes from and how well it does.
        checked: refuse to write a model that computes something else; False for one that is only timed.

    Raises:
        ValueError: the model cannot be written so that the same one is read back (see
            :func:`~ffprune_env.export.smaller_model.smaller_model`), or the folder holds something.
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    reason = why_not_saved(prunable.model)
    if reason is not None:
        raise ValueError(reason)
    require_resident(prunable.model, "writing a pruned model")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already: give the pruned model a new folder")
    pruned = smaller_model(prunable, kept, calibration, checked)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as scratch, quiet_transformers():
        pruned.save_pretrained(scratch, max_shard_size=_SHARD)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        card = model_card(prunable, kept, calibration, facts or CardFacts())
        (scratch / "README.md").write_text(card, encoding="utf-8")
