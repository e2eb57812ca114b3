"""Whether a family of models is measured, pruned and written right, tried on a tiny model of it, or is refused."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from ffprune_env.budget.arrays import IntArray
from ffprune_env.export.folder import save_pruned
from ffprune_env.lm.loss import perplexity
from ffprune_env.lm.one_line import one_line
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.tiny_families import VOCABULARY, own_perplexity, tiny_of_family
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.unit_layout import member_columns
from ffprune_env.pruning.units import find_units

T = TypeVar("T")

# Relative difference of two perplexities in float32 that is no fault.
_TOLERANCE = 1e-4
# Tokens of a prompt, and that follow it.
_PROMPT, _NEW = 7, 8
_NO_CACHE = {"use_cache": False}


@dataclass(frozen=True)
class Outcome:
    """What became of one family.

    Attributes:
        family: its model type.
        measured, searched, written, generates, again: whether that was done and found right.
        reason: the refusal of the first that was not.
        fault: what is wrong; empty if nothing is.
    """

    family: str
    measured: bool = False
    searched: bool = False
    written: bool = False
    generates: bool = False
    again: bool = False
    reason: str = ""
    fault: str = ""


class FaultError(Exception):
    """Neither right nor refused."""


class RefusalError(Exception):
    """Said in one line that it cannot be done."""


def examine(family: str) -> Outcome:
    """Tries one family.

    Args:
        family: its model type.
    """
    outcome = Outcome(family)
    try:
        model = tiny_of_family(family)
    except Exception as error:  # a default configuration made small can fail in any way
        return replace(outcome, reason=f"not tried, no tiny model can be made: {_told(error)}")
    done: dict[str, Any] = {}
    try:
        for step in steps(model):
            done[step] = True
    except RefusalError as refusal:
        return replace(outcome, **done, reason=str(refusal).removeprefix(f"{type(model).__name__} "))
    except FaultError as fault:
        return replace(outcome, fault=str(fault))
    except Exception as error:  # what is no refusal is a fault
        return replace(outcome, fault=f"{type(error).__name__}: {_told(error)}")
    return replace(outcome, **done)


def steps(model: PreTrainedModel) -> Iterator[str]:
    """Does what can be done with a model, and says after each step which it was, as :class:`Outcome` calls them.

    Args:
        model: a tiny one.

    Raises:
        RefusalError: a step cannot be done.
        FaultError: something is wrong.
    """
    windows = torch.randint(3, VOCABULARY - 8, (2, 24), generator=torch.Generator().manual_seed(0))
    dense = measured(model, windows)
    yield "measured"
    pruned = searched(model, windows, dense)
    yield "searched"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        loaded = written(pruned, windows, out)
        yield "written"
        with pruned.prunable.pruned(pruned.kept, pruned.calibration):
            require_same_text(loaded, model)
        yield "generates"
        require_pruned_again(load_pruned(out, device="cpu"), windows, Path(folder) / "again")
    yield "again"


def measured(model: PreTrainedModel, windows: torch.Tensor) -> float:
    """The perplexity of the dense model; FaultError if the model itself says another one."""
    dense = attempt(lambda: perplexity(model, windows))
    require_same("the dense perplexity", dense, own_perplexity(model, windows))
    return dense


@dataclass(frozen=True)
class Pruned:
    """What is written of a model.

    Attributes:
        prunable: the model, dense now.
        kept: int [N], groups kept per unit: about half.
        calibration: of what is kept.
        ppl: the perplexity of the model pruned and calibrated.
    """

    prunable: PrunableModel
    kept: IntArray
    calibration: RidgeCalibration
    ppl: float


def searched(model: PreTrainedModel, windows: torch.Tensor, dense: float) -> Pruned:
    """Does what a search does once: ranks and calibrates the model, prunes half of it, measures.

    Args:
        model: wrapped in place.
        windows: int64 [n, seq_len].
        dense: perplexity of the model on them.
    """
    original = copy.deepcopy(model)
    try:
        prunable = attempt(lambda: PrunableModel(model))
    except RefusalError:
        require_same("perplexity after a refusal", own_perplexity(model, windows), dense)
        raise
    calibration = attempt(lambda: prepare(prunable, windows))
    require_same("perplexity after ranking", perplexity(model, windows), dense)
    kept = np.array([max(1, unit.n_groups // 2) for unit in prunable.units])
    with prunable.pruned(kept):
        require_same(
            "perplexity of the pruned model",
            perplexity(model, windows),
            own_perplexity(masked(original, prunable, kept), windows),
        )
    with prunable.pruned(kept, calibration):
        ppl = perplexity(model, windows)
    if abs(math.log(ppl / dense)) < _TOLERANCE:
        raise FaultError(f"half of all groups removed, and the perplexity is {dense:.4f} as before")
    return Pruned(prunable, kept, calibration, ppl)


def written(pruned: Pruned, windows: torch.Tensor, out: Path) -> PreTrainedModel:
    """Writes a pruned model and reads it back in both ways.

    Args:
        pruned: what to write.
        windows: int64 [n, seq_len], that its perplexity was measured on.
        out: where to.

    Returns:
        The model as the code in its folder loads it.
    """
    attempt(lambda: save_pruned(pruned.prunable, pruned.kept, out, calibration=pruned.calibration))
    read = load_pruned(out, device="cpu")
    require_same("perplexity of what was written", own_perplexity(read, windows), pruned.ppl)
    loaded = load_by_its_own_code(out)
    require_same("perplexity of it by the code in its folder", own_perplexity(loaded, windows), pruned.ppl)
    return loaded


def load_by_its_own_code(folder: Path) -> PreTrainedModel:
    """What ``trust_remote_code=True`` loads where ffprune is not installed."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]["AutoModelForCausalLM"]
    model_class: Any = get_class_from_dynamic_module(reference, folder)
    model: PreTrainedModel = model_class.from_pretrained(folder)
    return model.eval()


def require_same_text(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    """Raises FaultError unless two models write the same: greedily, with either cache, padded, and by beams."""
    prompts = torch.randint(3, VOCABULARY - 8, (2, _PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompts)
    mask[0, :3] = 0  # the first prompt is shorter
    alone = [continued(expected, row[kept.bool()][None], _NEW)[0] for row, kept in zip(prompts, mask, strict=True)]
    beams = continued(expected, prompts[1:], _NEW, num_beams=3)
    for what, options in (("a dynamic", {}), ("a static", {"cache_implementation": "static"}), ("no", _NO_CACHE)):
        if not torch.equal(continued(model, prompts, _NEW, mask, **options), torch.stack(alone)):
            raise FaultError(
                f"what it generates with {what} cache and left padding is not what the model in memory does"
            )
    if not torch.equal(continued(model, prompts[1:], _NEW, num_beams=3), beams):
        raise FaultError("what it generates with beams is not what the model in memory does")


def continued(
    model: PreTrainedModel, prompts: torch.Tensor, n: int, mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """The n tokens that a model writes behind each prompt, greedily unless options say otherwise.

    Args:
        model: what writes.
        prompts: int64 [m, length].
        n: tokens to write; none is an end.
        mask: int64 [m, length], 0 where a shorter prompt is filled up on its left.
        **options: of ``generate``.

    Returns:
        int64 [m, n].
    """
    settings: dict[str, Any] = {"max_new_tokens": n, "do_sample": False, "eos_token_id": None, **options}
    settings |= {"attention_mask": torch.ones_like(prompts) if mask is None else mask, "pad_token_id": 0}
    tokens: torch.Tensor = model.generate(prompts, disable_compile=True, **settings)
    return tokens[:, prompts.shape[1] :]


def require_pruned_again(model: PreTrainedModel, windows: torch.Tensor, out: Path) -> None:
    """Raises FaultError unless half of what is left can go as well, in memory and on disk."""
    original, prunable = copy.deepcopy(model), PrunableModel(model)
    prunable.rank([np.arange(layout.n_members) % 3 for layout in prunable.layouts])
    kept = np.array([max(1, unit.n_groups // 2) for unit in prunable.units])
    expected = own_perplexity(masked(original, prunable, kept), windows)
    with prunable.pruned(kept):
        require_same("perplexity of the model pruned again", perplexity(model, windows), expected)
    save_pruned(prunable, kept, out)
    written = own_perplexity(load_pruned(out, device="cpu"), windows)
    require_same("perplexity of what was written of the model pruned again", written, expected)


def prepare(prunable: PrunableModel, windows: torch.Tensor) -> RidgeCalibration:
    """Ranks a model, and does on it all that the default search does before it begins."""
    collect_gradients(prunable, windows)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    calibration = RidgeCalibration(prunable, stats)
    damage_curves(prunable, windows, calibration)
    return calibration


def attempt(call: Callable[[], T]) -> T:
    """What a call gives; RefusalError if it refuses in one line, and FaultError if it takes more."""
    try:
        return call()
    except ValueError as error:
        if "\n" in str(error):
            raise FaultError(f"a refusal of several lines: {_told(error)}") from error
        raise RefusalError(str(error)) from error


def require_same(what: str, got: float, expected: float) -> None:
    """Raises FaultError unless two perplexities are finite and differ by no more than rounding."""
    if not (math.isfinite(expected) and abs(got - expected) <= _TOLERANCE * expected):
        raise FaultError(f"{what} is {got:.4f}, and should be {expected:.4f}")


@torch.no_grad()
def masked(model: PreTrainedModel, prunable: PrunableModel, kept: npt.ArrayLike) -> PreTrainedModel:
    """A copy of a wrapped model, made before, whose output projections ignore what is not kept; changed in place."""
    layouts = {layout.unit.name: layout for layout in find_units(model)}
    for unit, members in zip(prunable.units, prunable.kept_groups(kept), strict=True):
        layout = layouts[unit.name]
        gone = torch.from_numpy(np.setdiff1d(np.arange(layout.n_members), members))
        layout.output.weight[:, member_columns(layout, gone)] = 0
    return model


def _told(error: Exception) -> str:
    """What an error says, on one line of bearable length."""
    return one_line(error)[:300]
