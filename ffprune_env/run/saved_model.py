"""The model of a run: written, read back, and compared with the one that was measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.export.folder import save_pruned
from ffprune_env.export.model_card import CardFacts
from ffprune_env.lm.loss import perplexity_in_steps
from ffprune_env.lm.phases import phase
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.replacing import replacing
from ffprune_env.lm.same_model import require_same_model, rounding_tolerance
from ffprune_env.lm.stored_tensors import StoredTensor, stored_tensors
from ffprune_env.pruning.sinks import find_sinks, lost_sinks
from ffprune_env.run.results import PolicyResult


@dataclass(frozen=True)
class SavedModel:
    """What became of the model.

    Attributes:
        result: measured on the model that was read back; None if that could not be.
        failure: one line that says what is wrong with it; None if nothing is.
    """

    result: PolicyResult | None
    failure: str | None = None


def write_and_measure(
    evaluator: LMEvaluator,
    measured: PolicyResult,
    test_windows: torch.Tensor,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    facts: CardFacts,
    batch_size: int | None,
    on_cpu: bool = False,
    before_another: Callable[[], None] = lambda: None,
) -> SavedModel:
    """Writes a policy's model, and measures what a user reads back.

    What lies there goes when all of the new one is written, and not before.

    Args:
        evaluator: the model that is pruned.
        measured: the policy, as it was measured in memory.
        test_windows: int64 [n, seq_len].
        folder: where to.
        tokenizer: goes beside it.
        facts: for the model card.
        batch_size: windows per forward pass; None chooses.
        on_cpu: read it back there: a device that the dense model did not fit on has no room for another beside it.
        before_another: called before a model takes this place that is not, bit for bit, the one that is there now.
    """
    device = "cpu" if on_cpu else str(evaluator.prunable.device)
    try:
        calibration = evaluator.final_calibration(measured.kept)
        with phase("writing", f"{measured.params / 1e6:.1f} M parameters to {folder}"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder) as scratch:
                save_pruned(evaluator.prunable, measured.kept, scratch, tokenizer, calibration, facts)
                if not same_weights(folder, scratch):
                    before_another()
                if folder.exists():
                    shutil.rmtree(folder)
        texts = evaluator.chosen_on, test_windows
        with phase("reading back", str(folder), sum(map(len, texts))) as advance:
            model = load_pruned(folder, device=device)
            search_ppl, test_ppl = (perplexity_in_steps(model, x, batch_size, advance) for x in texts)
        lost = lost_sinks(find_sinks(evaluator.prunable.model, test_windows, evaluator.bos), model)
    except (ValueError, OSError, RuntimeError) as error:  # a full disk, or no memory for a second model
        return SavedModel(None, f"the model could not be written and read back: {error}")
    result = replace(measured, search_ppl=search_ppl, test_ppl=test_ppl, held_out=None, lost_sinks=lost)
    tolerance = rounding_tolerance(evaluator.prunable.model.dtype)
    return SavedModel(result, _difference(result, measured, tolerance, folder))


def same_weights(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, bit for bit; one that is not there, or is damaged, holds no others'.

    Args:
        folder: of a model, as :func:`~ffprune_env.export.folder.save_pruned` writes it.
        other: of another.
    """
    try:
        mine, others = stored_tensors(folder), stored_tensors(other)
        told = [{name: (x.shape, x.dtype) for name, x in of.items()} for of in (mine, others)]
        return told[0] == told[1] and all(torch.equal(_read(mine, name), _read(others, name)) for name in mine)
    except (ValueError, OSError):
        return False


def _read(stored: Mapping[str, StoredTensor], name: str) -> torch.Tensor:
    with safe_open(stored[name].file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _difference(saved: PolicyResult, measured: PolicyResult, tolerance: float, folder: Path) -> str | None:
    """How the model that was read back differs from the one that was measured; None if it does not."""
    pairs: Sequence[tuple[str, float, float]] = (
        ("search", saved.search_ppl, measured.search_ppl),
        ("test", saved.test_ppl, measured.test_ppl),
    )
    try:
        for text, written, before in pairs:
            require_same_model(written, before, tolerance, f"{folder}, on {text} text")
    except ValueError as error:
        return str(error)
    return None
