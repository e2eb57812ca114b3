"""A run that has ended, loaded once more: its settings, its dense model, its texts; what has changed is refused."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ffprune_env.cli.model_flags import ModelFlags
from ffprune_env.cli.text_flags import TextFlags
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.identity import (
    ChangedError,
    identity_of_model,
    identity_of_texts,
    identity_of_versions,
    text_names,
)
from ffprune_env.run.config import checked, evaluator_settings, not_a_run, warn_of_trust
from ffprune_env.run.folder import RunFolder
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ADVICE = "search it again"


@dataclass(frozen=True)
class RunSettings(ModelFlags, TextFlags, EvaluatorSettings):
    """What a run loaded, and how it ranked, calibrated and measured."""


@dataclass(frozen=True, eq=False)
class PastRun:
    """What a run saw.

    Attributes:
        model: the dense model.
        tokenizer: its tokenizer.
        texts: int64 [n, seq_len] by purpose, ``test`` among them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: dict[str, torch.Tensor]


def folders_of(path: Path) -> tuple[RunFolder, RunFolder]:
    """The folder of a run, and that of one of its sparsities, where its model is; they may be the same.

    Args:
        path: either of them, or the model in one.

    Raises:
        ValueError: neither is there, or the run has several sparsities.
    """
    if path.name == "model" and (path.parent / "best.json").is_file():
        path = path.parent
    if (path / "config.yaml").is_file():
        parts = sorted(x.parent for x in path.glob("s*/model"))
        if parts and not (path / "model").is_dir():
            raise ValueError(f"{path} has models of several sparsities: give one of {', '.join(map(str, parts))}")
        return RunFolder(path), RunFolder(path)
    if (path.parent / "config.yaml").is_file():
        return RunFolder(path.parent), RunFolder(path)
    raise ValueError(not_a_run(path))


def read_run_settings(run: RunFolder, trust_remote_code: bool) -> RunSettings:
    """The settings of a run, checked as far as no model is needed.

    Args:
        run: its folder.
        trust_remote_code: whether code of the checkpoint may run; the run does not say that.

    Raises:
        ValueError: they are none, or a text is unknown.
        OSError: a text is not there.
    """
    where, config = run.path / "config.yaml", run.read_config()
    names = {field.name for field in fields(RunSettings)} - {"trust_remote_code"}
    if not trust_remote_code:
        warn_of_trust(config, where)
    found = {name: value for name, value in config.items() if name in names}
    settings = checked(RunSettings, {**found, "trust_remote_code": trust_remote_code}, str(where))
    replace(settings, reward="ppl").require_allowed()  # who measures by another one will look for it
    settings.require_texts()
    return settings


def load_past_run(run: RunFolder, settings: RunSettings) -> PastRun:
    """Loads the dense model and the texts of a run.

    Args:
        run: its folder.
        settings: of the run.

    Raises:
        ChangedError: the model or a text is another one now.
        ValueError: a text is too short.
        OSError: something cannot be loaded.
    """
    dtype = run.dtype() if settings.dtype == "auto" else settings.dtype
    try:
        run.require_same(identity_of_versions(), advice="what is measured now is beside what was measured by those")
    except ChangedError as error:
        logger.warning("%s", error)
    model, tokenizer = replace(settings, dtype=dtype).load()
    run.require_same(identity_of_model(model), settings.model, advice=_ADVICE)
    test = settings.load_test(model, tokenizer, settings.bos)
    as_then = evaluator_settings(run.read_config(), run.path / "config.yaml")
    planned = load_planned_windows(model, tokenizer, settings.text, as_then).texts
    require_unseen(test, *planned.values())
    texts = {**planned, "test": test}
    names = text_names(settings.text, settings.test_text, texts, settings.calibration_text)
    run.require_same(identity_of_texts(texts), settings.model, names, _ADVICE)
    return PastRun(model, tokenizer, texts)
