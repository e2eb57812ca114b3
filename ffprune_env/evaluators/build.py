"""From names to an evaluator: a model loaded, ranked and calibrated on one text, to be measured on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ffprune_env.evaluators.fitting import fit
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.ledger import Ledger
from ffprune_env.evaluators.ranking import rank, require_same_perplexity
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.devices import devices_held, require_resident
from ffprune_env.lm.loss import check_tokens, perplexity
from ffprune_env.lm.models import DeviceMap, load_model
from ffprune_env.lm.phases import phase
from ffprune_env.pruning.criteria import CRITERIA
from ffprune_env.pruning.layer_calls import require_residual_layers
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.units import find_units
from ffprune_env.texts.bos import bos_protocol
from ffprune_env.texts.default_text import AUTO_TEXT, text_for
from ffprune_env.texts.openings import openings_of
from ffprune_env.texts.window_plan import load_planned_windows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_evaluator(
    model: str,
    text: str = AUTO_TEXT,
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
        text: see :func:`ffprune_env.load_windows`. ``auto`` is what goes with the model: ``wikitext2`` for the known
            names of the hub, ``python-docs`` for all others.
        dtype: number format of the weights.
        device: where the model lives.
        trust_remote_code: run Python code that the checkpoint brings along.
        device_map: ``auto`` spreads the model over what there is.
        max_memory: what it may take there of every device.
        **settings: fields of :class:`~ffprune_env.evaluators.settings.EvaluatorSettings`.

    Raises:
        ValueError: an unknown name, a setting out of range, or a text too short.
        TypeError: there is no such setting.
        OSError: something cannot be loaded.
    """
    asked = EvaluatorSettings(**settings)
    asked.require_allowed()  # before gigabytes are loaded
    loaded = load_model(model, dtype, device, trust_remote_code, device_map, max_memory)
    return build_evaluator(*loaded, text_for(model, text), asked)


def build_evaluator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    settings: EvaluatorSettings | None = None,
    order: Sequence[npt.ArrayLike] | None = None,
    texts: Mapping[str, torch.Tensor] | None = None,
    ledger: Ledger | None = None,
) -> LMEvaluator:
    """Ranks heads and channels of a model on calibration text and returns an evaluator over search text.

    Args:
        model: a causal language model; wrapped in place.
        tokenizer: its tokenizer.
        text: see :func:`ffprune_env.load_windows`.
        settings: how the model is ranked, calibrated and measured; None takes the defaults.
        order: of heads and channels, as :attr:`~ffprune_env.pruning.prunable.PrunableModel.order` of another process
            has it: the criterion is not asked, whose scores, in another number of threads, may order them otherwise.
        texts: windows by purpose that :func:`~ffprune_env.texts.window_plan.load_planned_windows` made of these
            names and numbers, where somebody looked at them first; None makes them.
        ledger: is told what the ranking costs, with the first look at the dense model, and the calibration.

    Raises:
        ValueError: the model cannot be pruned, an unknown name, a setting out of range, or a text too short.
        OSError: the text cannot be read.
    """
    settings = settings or EvaluatorSettings()
    settings.require_allowed()
    calibrates = settings.calibration != "none"
    if calibrates or CRITERIA[settings.criterion].gradients:
        require_resident(model, "calibration" if calibrates else f"the criterion {settings.criterion}")
    if texts is None:
        texts = load_planned_windows(model, tokenizer, text, settings).texts
    for windows in texts.values():
        check_tokens(model, windows)
    if settings.calibration == "sequential":
        require_residual_layers(model, find_units(model), texts["calibration"])
    bos = bos_protocol(settings.bos, model, tokenizer)
    openings = openings_of(texts["calibration"], settings.openings, bos)
    ledger, devices, first = ledger or Ledger(), devices_held(model), texts["search"][:1]
    with ledger.part("ranking", devices):
        with phase("trying the model", "a window, and what pruning relies on"):
            before = perplexity(model, first)
            prunable = PrunableModel(model, settings.channels_per_group, settings.heads)
        stats = rank(prunable, texts["calibration"], settings, order)
        require_same_perplexity(model, first, before)
    with ledger.part("calibration", devices):
        grams, stats = list(stats.grams or ()), replace(stats, grams=None)
        calibration = fit(prunable, grams, texts["calibration"], settings, openings)
    with ledger.part("ranking", devices):  # it measures the dense model
        evaluator = LMEvaluator(
            prunable,
            texts["search"],
            batch_size=settings.batch_size,
            calibration=calibration,
            calibrated=settings.reward_model == "calibrated",
            statistics=stats,
            sequential=settings.calibration == "sequential",
            texts=texts,
            bos=bos,
            tokenizer=tokenizer,
            data_dir=settings.data_dir,
            openings=openings,
        )
        return evaluator.rewarding(settings.reward)
