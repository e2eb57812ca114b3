"""From names to an evaluator: a model loaded, ranked and calibrated on one text, to be measured on another."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.loss import check_tokens, perplexity
from ffprune_env.lm.models import DeviceMap, load_model
from ffprune_env.lm.same_model import rounding_tolerance
from ffprune_env.pruning.backward import spread_windows
from ffprune_env.pruning.calibration import DEFAULT_RIDGE, RidgeCalibration, Storage, check_ridge
from ffprune_env.pruning.criteria import CRITERIA, Evidence
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.layer_calls import require_residual_layers
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, drain, gram_bytes, stream_grams
from ffprune_env.pruning.units import find_units
from ffprune_env.texts.window_plan import load_planned_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Gram matrices may take this many times the memory of the model before they are made in several runs.
_GRAMS_PER_MODEL = 1.5
# A regression on fewer tokens than this per column can leave a model worse than it was.
_TOKENS_PER_COLUMN = 4
# Calibration text for criteria that look at gradients; a token costs a forward and a backward pass.
_GRADIENT_TOKENS = 8192


def load_evaluator(
    model: str,
    text: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    max_memory: str | None = None,
    **settings: Any,
) -> LMEvaluator:
    """Loads a model by name and builds an evaluator of it.

    Args:
        model: see :func:`ffprune_env.load_model`, as for the arguments from ``dtype`` to ``max_memory``.
        text: see :func:`ffprune_env.load_windows`.
        dtype: number format of the weights.
        device: where the model lives.
        trust_remote_code: run Python code that the checkpoint brings along.
        device_map: ``auto`` spreads the model over what there is.
        max_memory: what it may take there of every device.
        **settings: see :func:`build_evaluator`.

    Raises:
        ValueError: an unknown name, or a text too short.
        OSError: something cannot be loaded.
    """
    inspect.signature(build_evaluator).bind(None, None, text, **settings)  # a misspelt name fails before gigabytes load
    loaded = load_model(model, dtype, device, trust_remote_code, device_map, max_memory)
    return build_evaluator(*loaded, text, **settings)


def build_evaluator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    seq_len: int = 512,
    n_samples: int = 4,
    final_samples: int = 0,
    curve_windows: int = 0,
    calibration_windows: int = 32,
    channels_per_group: int = 1,
    criterion: str = "wanda",
    batch_size: int | None = 1,
    calibrated: bool = False,
    ridge: float | None = None,
    factor_storage: Storage = "device",
    sequential: bool = False,
    order: Sequence[npt.ArrayLike] | None = None,
    texts: Mapping[str, torch.Tensor] | None = None,
) -> LMEvaluator:
    """Ranks heads and channels of a model on calibration text and returns an evaluator over search text.

    Args:
        model: a causal language model; wrapped in place.
        tokenizer: its tokenizer.
        text: see :func:`ffprune_env.load_windows`.
        seq_len: tokens per window; a model whose context is shorter uses its own maximum.
        n_samples: N_max, windows of search text.
        final_samples: further windows of search text, for a search to rank its last candidates on.
        curve_windows: further windows of search text for methods that look at gradients: ``texts["curves"]``.
        calibration_windows: windows that the criterion and the calibration see, or all there are if those are fewer.
        channels_per_group: FFN channels that are removed at once, see :func:`ffprune_env.pruning.units.find_units`.
        criterion: how heads and channels are scored, a name of :data:`ffprune_env.pruning.criteria.CRITERIA`.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.
        calibrated: measure the model with its surviving weights re-fitted.
        ridge: λ of the calibration, as a fraction of the mean diagonal of G; None makes no calibration, unless
            ``calibrated`` asks for one, which then takes 0.01.
        factor_storage: where the calibration keeps its factors, ``"device"`` or ``"cpu"``.
        sequential: calibrate the model that the user will get once more, in sequence, if there is a calibration.
        order: of heads and channels, as :attr:`~ffprune_env.pruning.prunable.PrunableModel.order` of another process
            has it: the criterion is not asked, whose scores, in another number of threads, may order them otherwise.
        texts: windows by purpose that :func:`~ffprune_env.texts.window_plan.load_planned_windows` made of these
            names and numbers, where somebody looked at them first; None makes them.

    Raises:
        ValueError: the model cannot be pruned, an unknown name, a setting out of range, or a text too short.
        OSError: the text cannot be read.
    """
    if ridge is None and calibrated:
        ridge = DEFAULT_RIDGE
    if ridge is not None:
        check_ridge(ridge, factor_storage)
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; allowed are {', '.join(CRITERIA)}")
    if ridge is not None or CRITERIA[criterion].gradients:
        require_resident(model, "calibration" if ridge is not None else f"the criterion {criterion}")
    if texts is None:
        texts = load_planned_windows(
            model,
            tokenizer,
            text,
            seq_len=seq_len,
            samples=n_samples,
            final_samples=final_samples,
            curve_windows=curve_windows,
            calibration_windows=calibration_windows,
        ).texts
    seen = texts["calibration"]
    for windows in texts.values():
        check_tokens(model, windows)
    if sequential and ridge is not None:
        require_residual_layers(model, find_units(model), seen)
    first = texts["search"][:1]
    before = perplexity(model, first)
    prunable = PrunableModel(model, channels_per_group)
    chosen = CRITERIA[criterion]
    gradients = None
    if chosen.gradients and order is None:
        gradients = collect_gradients(prunable, spread_windows(seen, _GRADIENT_TOKENS), outputs=chosen.outputs)
    room = _room_for_grams(prunable)
    at_once = ridge is not None and gram_bytes(prunable) <= room
    stats = collect_statistics(prunable, seen, gram=at_once, batch_size=batch_size)
    evidence = Evidence(
        stats,
        gradients,
        grams=lambda: stats.grams or stream_grams(prunable, seen, room, batch_size),
        ridge=DEFAULT_RIDGE if ridge is None else ridge,
    )
    if order is None:
        prunable.rank(chosen.score(prunable, evidence))
    else:
        prunable.rank_as(order)
    del evidence, gradients
    _require_same_order(model, first, before)
    calibration = None
    if ridge is not None:
        widest = max(layout.output.in_features for layout in prunable.layouts)
        if seen.numel() < _TOKENS_PER_COLUMN * widest:
            logger.warning(
                "calibration may fit noise: %d tokens for units of up to %d columns; %d windows would do",
                seen.numel(),
                widest,
                -(-_TOKENS_PER_COLUMN * widest // seen.shape[1]),
            )
        matrices = list(stats.grams or ())
        stats = replace(stats, grams=None)  # a matrix goes when its factors are made
        grams = drain(matrices) if at_once else stream_grams(prunable, seen, room, batch_size)
        calibration = RidgeCalibration(prunable, grams, ridge, factor_storage)
    again = seen if sequential and calibration is not None else None
    return LMEvaluator(prunable, texts["search"], batch_size, calibration, calibrated, stats, again, texts)


def _require_same_order(model: PreTrainedModel, window: torch.Tensor, before: float) -> None:
    """Refuses a model that ranking changed: what was tried on a few tokens can be otherwise far into a window."""
    after = perplexity(model, window)
    if not abs(math.log(after / before)) <= rounding_tolerance(model.dtype) and math.isfinite(before):
        raise ValueError(
            f"{type(model).__name__} cannot be pruned: on {window.shape[1]} tokens of text its perplexity is "
            f"{before:.4f}, and {after:.4f} with heads and channels in another order"
        )


def _room_for_grams(prunable: PrunableModel) -> int:
    """Bytes that Gram matrices may take at one time: by the size of the model, and on GPUs half of what is free."""
    room = int(_GRAMS_PER_MODEL * prunable.model.get_memory_footprint())
    gpus = {layout.device for layout in prunable.layouts if layout.device.type == "cuda"}
    return min(room, sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus) // 2) if gpus else room
