"""A pruned model whose weights were trained: written like the folder that it came from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ffprune_env.lm.head import own_logits
from ffprune_env.lm.probing import ROUNDING, calm, probe_tokens, usual_error
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.quiet import quiet_transformers
from ffprune_env.lm.replacing import replacing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARD = "5GB"
_CARD = "README.md"
_BEFORE = "## Load it"  # what a card begins to say how a model is used with


def save_rewritten(model: PreTrainedModel, folder: Path, source: Path, section: str) -> None:
    """Writes a model that was read from a folder, and then trained, to another folder of the same kind.

    Weights, config and code are written anew; tokenizer and whatever else lies there are copied. What a user reads back
    is compared with the model in memory.

    Args:
        model: of the shapes that it had when it was read.
        folder: where to; what is there goes, once all is written.
        source: the folder that it was read from.
        section: what the model card is to say of the training, in Markdown, with a heading of the second level.

    Raises:
        ValueError: what is read back computes something else.
        OSError: the folder cannot be written.
    """
    with replacing(folder) as scratch, quiet_transformers():
        model.save_pretrained(scratch, max_shard_size=_SHARD)
        for file in source.iterdir():
            weights = file.suffix == ".safetensors" or file.name.endswith(".safetensors.index.json")
            if file.is_file() and not weights and not (scratch / file.name).exists():
                shutil.copyfile(file, scratch / file.name)
        card = source / _CARD
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        (scratch / _CARD).write_text(card_with(text, section), encoding="utf-8")
        _require_same(model, load_pruned(scratch, device="cpu"), folder)
        if folder.is_dir():
            shutil.rmtree(folder)


def card_with(card: str, section: str) -> str:
    """A model card with one more section, before the one that says how to load the model if there is one.

    Args:
        card: in Markdown.
        section: in Markdown.
    """
    head, mark, tail = card.partition(_BEFORE)
    return f"{head.rstrip()}\n\n{section.strip()}\n\n{mark}{tail}".strip() + "\n"


def _require_same(model: PreTrainedModel, read: PreTrainedModel, folder: Path) -> None:
    tokens = probe_tokens(read, (3, 9))
    with calm(model), calm(read), torch.no_grad():
        off = usual_error(own_logits(read, tokens), own_logits(model, tokens).cpu())
    if not off <= ROUNDING[model.dtype]:
        raise ValueError(
            f"{folder} was not written: what is read back is not the model, its logits are off by {off:.2g}"
        )
