"""Whether a family of models is measured, pruned and written right, tried on a tiny model of it, or is refused."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from ffprune_env.export.folder import save_pruned
from ffprune_env.lm.loss import perplexity
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.tiny_families import VOCABULARY, own_perplexity, tiny_of_family
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.units import find_units, member_columns

T = TypeVar("T")

# Relative difference of two perplexities in float32 that is no fault.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """What became of one family.

    Attributes:
        family: its model type.
        measured, searched, written: whether that was done and found right.
        reason: the refusal of the first that was not.
        fault: what is wrong; empty if nothing is.
    """

    family: str
    measured: bool = False
    searched: bool = False
    written: bool = False
    reason: str = ""
    fault: str = ""


class Fault(Exception):  # noqa: N818 - it is one of the library, and a finding here
    """Neither right nor refused."""


def examine(family: str) -> Outcome:
    """Tries one family.

    Args:
        family: its model type.
    """
    outcome = Outcome(family)
    try:
        model = tiny_of_family(family)
    except Exception as error:  # a default configuration made small can fail in any way
        return replace(outcome, reason=f"not tried, no tiny model can be made: {one_line(error)}")
    try:
        for step in steps(model):
            outcome = replace(outcome, **step)
    except Fault as fault:
        return replace(outcome, fault=str(fault))
    except Exception as error:  # what is no refusal is a fault
        return replace(outcome, fault=f"{type(error).__name__}: {one_line(error)}")
    return outcome


def steps(model: PreTrainedModel) -> list[dict[str, Any]]:
    """What can be done with a model, one after the other, up to the first refusal; a fault is raised."""
    windows = torch.randint(3, VOCABULARY - 8, (2, 24), generator=torch.Generator().manual_seed(0))
    done: list[dict[str, Any]] = []

    def refused(reason: str) -> list[dict[str, Any]]:
        return [*done, {"reason": reason.removeprefix(f"{type(model).__name__} ")}]

    dense, reason = attempt(lambda: perplexity(model, windows))
    if dense is None:
        return refused(reason)
    require_same("the dense perplexity", dense, own_perplexity(model, windows))
    done.append({"measured": True})

    original = copy.deepcopy(model)
    prunable, reason = attempt(lambda: PrunableModel(model))
    if prunable is None:
        require_same("perplexity after a refusal", own_perplexity(model, windows), dense)
        return refused(reason)
    calibration, reason = attempt(lambda: prepare(prunable, windows))
    if calibration is None:
        return refused(reason)
    require_same("perplexity after ranking", perplexity(model, windows), dense)
    kept = np.array([max(1, unit.n_groups // 2) for unit in prunable.units])
    with prunable.pruned(kept):
        require_same(
            "perplexity of the pruned model",
            perplexity(model, windows),
            own_perplexity(masked(original, prunable.kept_groups(kept)), windows),
        )
    with prunable.pruned(kept, calibration):
        pruned = perplexity(model, windows)
    if abs(math.log(pruned / dense)) < _TOLERANCE:
        raise Fault(f"half of all groups removed, and the perplexity is {dense:.4f} as before")
    done.append({"searched": True})

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"

        def save() -> Path:
            save_pruned(prunable, kept, out, calibration=calibration)
            return out

        saved, reason = attempt(save)
        if saved is None:
            return refused(reason)
        require_same("perplexity of what was written", own_perplexity(load_pruned(out, device="cpu"), windows), pruned)
    return [*done, {"written": True}]


def prepare(prunable: PrunableModel, windows: torch.Tensor) -> RidgeCalibration:
    """Ranks a model, and does on it all that the default search does before it begins."""
    collect_gradients(prunable, windows)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    calibration = RidgeCalibration(prunable, stats)
    damage_curves(prunable, windows, calibration)
    return calibration


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """What a call gives, or the one line in which it refuses."""
    try:
        return call(), ""
    except ValueError as error:
        if "\n" in str(error):
            raise Fault(f"a refusal of several lines: {one_line(error)}") from error
        return None, str(error)


def require_same(what: str, got: float, expected: float) -> None:
    """Raises Fault unless two perplexities are finite and differ by no more than rounding."""
    if not (math.isfinite(expected) and abs(got - expected) <= _TOLERANCE * expected):
        raise Fault(f"{what} is {got:.4f}, and should be {expected:.4f}")


@torch.no_grad()
def masked(model: PreTrainedModel, kept: list[Any]) -> PreTrainedModel:
    """A model whose output projections ignore the heads and channels that are not kept; changed in place."""
    for layout, members in zip(find_units(model), kept, strict=True):
        gone = torch.from_numpy(np.setdiff1d(np.arange(layout.n_members), members))
        layout.output.weight[:, member_columns(layout, gone)] = 0
    return model


def one_line(error: Exception) -> str:
    """What an error says, on one line of bearable length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
