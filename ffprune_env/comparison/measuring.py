"""What a folder of a comparison is measured with: the model loaded and ranked, and found to be the one of before."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from ffprune_env.comparison.folder import ComparisonFolder
from ffprune_env.comparison.questions import Questions
from ffprune_env.comparison.subject import Subject
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.rewarded import RewardedEvaluator, identity_of_reward
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.identity import ChangedError, identity_of_model, identity_of_texts, text_names
from ffprune_env.pruning.stored_order import ORDER, order_as_json
from ffprune_env.run.provenance import machine_facts, provenance
from ffprune_env.search.problem import StartName
from ffprune_env.texts.bos import bos_protocol
from ffprune_env.texts.plan_rows import counts, windows_made

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Model = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]


@dataclass(frozen=True)
class Measuring:
    """What cells are measured with, and how that is loaded.

    Attributes:
        model: name of the model.
        text: name of the text that is searched and calibrated on.
        test_text: name of the test text; None is the test part of ``text``.
        settings: how the model is ranked, calibrated and measured.
        load_model: loads the model and its tokenizer.
        load_texts: of both, the windows by purpose and those of test text, int64 [n, seq_len].
        targets: all sparsities that are compared at, ascending.
        start: where searches start.
        questions: what the final models of every method, with its first seeds, are asked; None asks nothing.
    """

    model: str
    text: str
    test_text: str | None
    settings: EvaluatorSettings
    load_model: Callable[[], Model]
    load_texts: Callable[[PreTrainedModel, PreTrainedTokenizerBase], tuple[dict[str, torch.Tensor], torch.Tensor]]
    targets: tuple[float, ...] = ()
    start: StartName = "own"
    questions: Questions | None = None


@dataclass(frozen=True)
class Loaded:
    """The model and the texts that cells are measured with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: dict[str, torch.Tensor]


def load(measuring: Measuring, folder: ComparisonFolder) -> Loaded:
    """Loads model and texts; ChangedError if the folder was filled with others."""
    model, tokenizer = measuring.load_model()
    before = folder.manifest or {}
    if before.get("dtype", str(model.dtype)) != str(model.dtype):
        there = before["dtype"].removeprefix("torch.")
        raise ChangedError(f"{folder.path} was measured in {there}, not {model.dtype}: give --dtype {there}")
    folder.require_same_identity(identity_of_model(model), measuring.model)
    bos, made = bos_protocol(measuring.settings.bos, model, tokenizer), before.get("made")
    if made is not None and made.get("bos", "never") != bos:
        there = made.get("bos", "never")
        raise ChangedError(
            f"{folder.path} was made with bos {there!r}, not {bos!r}: give another --out or --bos {there}"
        )
    planned, test = measuring.load_texts(model, tokenizer)
    texts = {**planned, "test": test}
    names = text_names(measuring.text, measuring.test_text, texts, measuring.settings.calibration_text)
    folder.require_same_identity(identity_of_texts(texts), measuring.model, names)
    return Loaded(model, tokenizer, texts)


def prepare(measuring: Measuring, folder: ComparisonFolder, loaded: Loaded) -> Subject:
    """Ranks the model, or takes the ranking of before, and calibrates it; measures of the dense one what is missing."""
    model, tokenizer, settings = loaded.model, loaded.tokenizer, measuring.settings
    order = folder.order(model)
    looked_at = {purpose: windows for purpose, windows in loaded.texts.items() if purpose != "test"}
    began = time.perf_counter()
    evaluator = build_evaluator(model, tokenizer, measuring.text, settings, order, looked_at)
    # Every method minimizes what is measured, of whatever kind.
    evaluator = evaluator.rewarding(settings.reward, stands_in=True)
    folder.require_same_identity(identity_of_reward(evaluator), measuring.model)
    prepared = time.perf_counter() - began
    if order is None:
        folder.write(ORDER, order_as_json(evaluator.prunable))
    prunable, texts, questions = evaluator.prunable, loaded.texts, measuring.questions
    plain = LMEvaluator(
        prunable,
        evaluator.windows,
        settings.batch_size,
        evaluator.calibration,
        False,
        evaluator.statistics,
        texts=texts,
        bos=evaluator.bos,
    )
    if isinstance(evaluator, RewardedEvaluator):
        plain = RewardedEvaluator(plain, evaluator.objectives)
    subject = Subject(
        evaluator,
        plain,
        texts["calibration"],
        texts["test"],
        settings.batch_size,
        None if questions is None else questions.asker(tokenizer, settings.batch_size),
        targets=measuring.targets,
        start=measuring.start,
        policies=folder.policies,
    )
    facts = {**machine_facts(model), "windows": counts(loaded.texts)}
    before = folder.manifest
    if before is None:
        made = windows_made(loaded.texts, evaluator.bos)
        folder.write("manifest.json", {**provenance(), **facts, "made": made, "seconds_prepared": prepared})
    elif before["device"] != facts["device"] or before["threads"] != facts["threads"]:
        logger.warning("seconds do not compare: what is there was measured on %(device)s, %(threads)d threads", before)
    measure_dense(folder, subject, questions)
    return subject


def measure_dense(folder: ComparisonFolder, subject: Subject, questions: Questions | None) -> None:
    """Measures of the dense model what the folder does not hold yet."""
    prunable, model = subject.evaluator.prunable, subject.evaluator.prunable.model
    dense = folder.dense
    if dense is None:
        logger.info("the dense model ...")
        ppl, interval = subject.test(model)
        units = [asdict(unit) for unit in prunable.units]
        dense = {"units": units, "n_params": prunable.n_params, "dense_test_ppl": ppl, "dense_interval": interval}
        dense["dense_held_out"] = subject.held_out()(model)
        folder.dense = dense
    if questions is not None and dense.get("dense_zero_shot") is None:
        dense["dense_zero_shot"], dense["dense_zero_shot_stderr"] = subject.ask(model)
        folder.write("zero_shot.json", questions.facts())
        folder.dense = dense
