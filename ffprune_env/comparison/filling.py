"""A folder of a comparison is filled: the model loaded and ranked, and what is missing measured, cell after cell."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.comparison.cell import Cell
from ffprune_env.comparison.contest import ask, ask_final, search_and_measure, with_room
from ffprune_env.comparison.folder import ComparisonFolder
from ffprune_env.comparison.plan import ANSWERING, Key, read_cell
from ffprune_env.comparison.rebuilt import REBUILDERS, rebuild_and_measure
from ffprune_env.comparison.subject import Subject
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.rewarded import RewardedEvaluator, identity_of_reward
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.identity import (
    ChangedError,
    identity_of_model,
    identity_of_texts,
    identity_of_versions,
    text_names,
)
from ffprune_env.pruning.stored_order import ORDER, order_as_json
from ffprune_env.run.provenance import machine_facts, provenance
from ffprune_env.search.problem import StartName
from ffprune_env.texts.bos import bos_protocol
from ffprune_env.texts.window_plan import counts, windows_made

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ffprune_env.evaluators.zero_shot import ZeroShot

logger = logging.getLogger(__name__)

#: Flags that perplexities do not depend on: cells that differ in nothing else share a folder. What `auto` of --bos is
#: for the model is looked at when that is loaded.
NOT_SHARED = (
    "out", "sparsity", "methods", "seeds", "factor_storage", "device", "device_map", "max_memory", "data_dir", "limit",
    "held_out", "trust_remote_code", "bos",
)  # fmt: skip

Model = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]
#: (model, tokenizer, tasks, limit) to accuracies.
Score = Callable[["PreTrainedModel", "PreTrainedTokenizerBase", Mapping[str, Any], "int | None"], "ZeroShot"]


@dataclass(frozen=True)
class Questions:
    """The zero-shot questions that final models are asked.

    Attributes:
        tasks: what :func:`~ffprune_env.evaluators.zero_shot_tasks.open_tasks` yields.
        limit: questions per task, from the first; None asks all.
        data_dir: folder that they were read from; None where they came from the hub.
        score: asks them.
        apart: a digest of what was taken out, since searches see it; empty if that is nothing.
        seeds: of how many seeds of every search the final model is asked.
    """

    tasks: Mapping[str, Any]
    limit: int | None
    data_dir: Path | None
    score: Score
    apart: str = ""
    seeds: int = 1

    def facts(self) -> dict[str, Any]:
        """What accuracies depend on."""
        from ffprune_env.evaluators.zero_shot_tasks import digest_of_files

        data = None if self.data_dir is None else digest_of_files(self.data_dir)
        apart = {"apart": self.apart} if self.apart else {}
        return {"data": data, "limit": self.limit, "lm_eval": metadata.version("lm_eval"), **apart}


@dataclass(frozen=True)
class Filling:
    """What a folder is to hold, and how what it is measured with is loaded.

    Attributes:
        keys: the cells.
        model: name of the model.
        text: name of the text that is searched and calibrated on.
        test_text: name of the test text; None is the test part of ``text``.
        settings: how the model is ranked, calibrated and measured.
        evaluations: budget of every search at one sparsity.
        targets: all sparsities that are compared at, ascending.
        start: where searches start.
        load_model: loads the model and its tokenizer.
        load_texts: of both, the windows by purpose and those of test text, int64 [n, seq_len].
        questions: what the final models of every method, with its first seeds, are asked; None asks nothing.
    """

    keys: Sequence[Key]
    model: str
    text: str
    test_text: str | None
    settings: EvaluatorSettings
    evaluations: int
    targets: tuple[float, ...]
    start: StartName
    load_model: Callable[[], Model]
    load_texts: Callable[[PreTrainedModel, PreTrainedTokenizerBase], tuple[dict[str, torch.Tensor], torch.Tensor]]
    questions: Questions | None = None

    def unasked(self, key: Key, cell: Cell | None) -> bool:
        """Whether the final model of a cell is still to be asked; of every method the first seeds are."""
        if self.questions is None or (key.seed or 0) >= self.questions.seeds:
            return False
        return cell is None or cell.zero_shot is None

    def wanted(self, folder: ComparisonFolder) -> list[Key]:
        """The cells that the folder is to hold, without `ffn-only` where no attention can be cut: it is `uniform`."""
        dense, methods = folder.dense, {key.method for key in self.keys}
        cut = dense is None or any(unit["kind"] == "attention" for unit in dense["units"])
        return [key for key in self.keys if cut or key.method != "ffn-only" or "uniform" not in methods]

    def lacks(self, folder: ComparisonFolder) -> list[Key]:
        """The cells that the folder does not hold yet, or whose questions were not asked."""
        found = [(key, read_cell(folder, key, self.targets)) for key in self.wanted(folder)]
        return [key for key, cell in found if cell is None or self.unasked(key, cell)]


@dataclass(frozen=True)
class Loaded:
    """The model and the texts that cells are measured with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: dict[str, torch.Tensor]


def fill(filling: Filling, folder: ComparisonFolder, complain: Callable[[str], object]) -> int:
    """Measures what the folder lacks. The model is loaded, and found to be the one of the folder, in any case.

    Args:
        filling: what it is to hold.
        folder: of the comparison.
        complain: called with a line for every method that could not do what it was asked.

    Returns:
        How many those are.

    Raises:
        ChangedError: the folder was filled with something else than there is now.
        OSError: something cannot be loaded.
        ValueError: a text is too short, or the model cannot be pruned.
    """
    if filling.questions is not None:
        folder.require_same("zero_shot.json", filling.questions.facts())
    adds = folder.dense is None or bool(filling.lacks(folder))
    folder.require_same_identity(identity_of_versions(), adds=adds)
    loaded = load(filling, folder)
    if not adds:
        logger.info("all is measured already")
        return 0
    subject = prepare(filling, folder, loaded)
    with subject.evaluator.sharing_dense_pass():
        return measure_missing(filling, folder, subject, complain)


def measure_missing(
    filling: Filling, folder: ComparisonFolder, subject: Subject, complain: Callable[[str], object]
) -> int:
    """Measures cell after cell what the folder lacks; returns how many methods could not do what they were asked."""
    failures, wanted = 0, filling.wanted(folder)
    if len(wanted) < len(filling.keys):
        logger.info("no attention can be cut: ffn-only is uniform, and not measured again")
    for key in wanted:
        cell = read_cell(folder, key, filling.targets)
        unasked = filling.unasked(key, cell)
        if cell is not None and not unasked:
            continue
        logger.info("%s ...", key.title)
        try:
            if key.method in REBUILDERS:
                measured, model = rebuild_and_measure(subject, key.method, key.sparsity)
                cell = keep(folder, key, measured) if cell is None else cell
                if unasked:
                    folder.add(ask(subject, cell, model))
                del model
            else:
                method = ANSWERING[key.method]
                if cell is None:
                    ask_method = partial(search_and_measure, subject, key.method, method)
                    measured = with_room(subject, partial(ask_method, key.sparsity, key.seed, filling.evaluations))
                    cell = keep(folder, key, measured)
                if unasked:
                    folder.add(with_room(subject, partial(ask_final, subject, cell, method)))
        except ChangedError:  # another process has begun to fill the folder with something else: nothing will fit
            raise
        except (ValueError, RuntimeError) as error:  # one method that cannot do it is no reason to lose the others
            failures += 1
            complain(f"{key.title}: {error}")
    return failures


def keep(folder: ComparisonFolder, key: Key, cell: Cell) -> Cell:
    """Keeps a cell, and says what it holds."""
    folder.add(cell)
    final = cell.test_ppl if cell.calibrated_test_ppl is None else cell.calibrated_test_ppl
    logger.info("%s: test PPL %.2f, in the end %.2f; %.0f s", key.title, cell.test_ppl, final, cell.seconds)
    return cell


def load(filling: Filling, folder: ComparisonFolder) -> Loaded:
    """Loads model and texts; ChangedError if the folder was filled with others."""
    model, tokenizer = filling.load_model()
    folder.require_same_identity(identity_of_model(model), filling.model)
    bos, made = bos_protocol(filling.settings.bos, model, tokenizer), (folder.manifest or {}).get("made")
    if made is not None and made.get("bos", "never") != bos:
        there = made.get("bos", "never")
        raise ChangedError(
            f"{folder.path} was made with bos {there!r}, not {bos!r}: give another --out or --bos {there}"
        )
    planned, test = filling.load_texts(model, tokenizer)
    texts = {**planned, "test": test}
    names = text_names(filling.text, filling.test_text, texts, filling.settings.calibration_text)
    folder.require_same_identity(identity_of_texts(texts), filling.model, names)
    return Loaded(model, tokenizer, texts)


def prepare(filling: Filling, folder: ComparisonFolder, loaded: Loaded) -> Subject:
    """Ranks the model, or takes the ranking of before, and calibrates it; measures of the dense one what is missing."""
    model, tokenizer, settings = loaded.model, loaded.tokenizer, filling.settings
    order = folder.order(model)
    looked_at = {purpose: windows for purpose, windows in loaded.texts.items() if purpose != "test"}
    began = time.perf_counter()
    evaluator = build_evaluator(model, tokenizer, filling.text, settings, order, looked_at)
    # Every method minimizes what is measured, of whatever kind.
    evaluator = evaluator.rewarding(settings.reward, stands_in=True)
    folder.require_same_identity(identity_of_reward(evaluator), filling.model)
    prepared = time.perf_counter() - began
    if order is None:
        folder.write(ORDER, order_as_json(evaluator.prunable))
    prunable, texts, questions = evaluator.prunable, loaded.texts, filling.questions
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
        None
        if questions is None
        else lambda asked: questions.score(asked, tokenizer, questions.tasks, questions.limit),
        targets=filling.targets,
        start=filling.start,
        policies=folder.policies,
    )
    facts = {**machine_facts(model), "windows": counts(loaded.texts)}
    before = folder.manifest
    if before is None:
        made = windows_made(loaded.texts, evaluator.bos)
        folder.write("manifest.json", {**provenance(), **facts, "made": made, "seconds_prepared": prepared})
    elif before["dtype"] != facts["dtype"]:
        raise ValueError(f"{folder.path} was measured in {before['dtype']}, not {facts['dtype']}: give --dtype")
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
