"""Methods against each other on one model: each answers the same problem, and its answer is measured the same way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ffprune_env.budget.arrays import IntArray
from ffprune_env.comparison.answers import answer_of, progress
from ffprune_env.comparison.cell import Cell
from ffprune_env.comparison.subject import Subject
from ffprune_env.lm.batches import is_out_of_memory, release_memory
from ffprune_env.lm.timing import synchronize
from ffprune_env.methods.registry import Method, settings_of
from ffprune_env.pruning.calibration_kind import calibration_kind
from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.prunable import Calibration
from ffprune_env.pruning.saliency import wifv_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")


def search_and_measure(
    subject: Subject,
    name: str,
    method: Method,
    sparsity: float,
    seed: int | None,
    evaluations: int,
) -> Cell:
    """Lets one method answer, and measures its answer with and without calibration.

    Args:
        subject: the model and its texts.
        name: of the method, for the cell.
        method: the method.
        sparsity: σ.
        seed: of what it draws; None for methods that draw nothing.
        evaluations: its budget at one sparsity, in measurements on N_max windows of search text.

    Raises:
        ValueError: the method cannot reach the sparsity, or not with this budget.
    """
    prunable = subject.evaluator.prunable
    paid = answer_of(subject, method, sparsity, seed or 0, method.budget(evaluations))
    kept = paid.kept
    if paid.learned is not None and subject.policies is not None:
        subject.policies.keep(name, sparsity, seed or 0, paid.learned)
    with ranking_of(subject, method):
        with prunable.pruned(kept) as model:
            test_ppl, interval = subject.test(model)
            cut = model.num_parameters()
        params = prunable.params(kept)  # as many as are written: keys that no query reads are not
        started = time.perf_counter()
        calibration = calibration_of(subject, method, kept)
        calibrated_ppl = calibrated_interval = calibrating = None
        if calibration is not None:
            with prunable.pruned(kept, calibration) as model:
                synchronize(prunable.device)
                calibrating = time.perf_counter() - started  # by Eqs. 6-7 weights are re-fitted as they are cut
                params += model.num_parameters() - cut  # FLAP's compensation adds biases
                calibrated_ppl, calibrated_interval = subject.test(model)
        rewarded = subject.held_out()
        with prunable.pruned(kept, calibration) as model:
            held_out = rewarded(model)
    n_windows, tokens_per_window = subject.evaluator.max_samples, subject.evaluator.windows.shape[1]
    return Cell(
        method=name,
        target_sparsity=sparsity,
        seed=seed,
        kept=kept.tolist(),
        sparsity=prunable.sparsity(kept),
        total_sparsity=(prunable.n_params - params) / prunable.n_params,
        params=params,
        search_ppl=None if method.flap_bias else subject.evaluator.text_evaluator.measure(kept, n_windows),
        test_ppl=test_ppl,
        test_interval=interval,
        calibrated_test_ppl=calibrated_ppl,
        calibrated_test_interval=calibrated_interval,
        evaluations=paid.spent / n_windows,
        tokens=round(paid.spent * tokens_per_window),
        tokens_seen=round(paid.seen * tokens_per_window),
        candidates=round(paid.candidates),
        calibration_seconds=calibrating,
        seconds=paid.seconds,
        trace=[(round(spent * tokens_per_window), ppl) for spent, ppl in progress(paid, subject.evaluator)],
        calibration=calibration_kind(calibration),
        calibration_asked="flap-bias" if method.flap_bias else subject.evaluator.calibration_asked,
        settings=settings_of(method, subject.all_targets(sparsity)),
        held_out=held_out,
    )


def ranking_of(subject: Subject, method: Method) -> AbstractContextManager[None]:
    """Inside, the heads and channels of the model are in the order that the method itself goes by."""
    prunable, statistics = subject.evaluator.prunable, subject.evaluator.statistics
    if method.flap_bias and statistics is not None:
        return prunable.ranked(wifv_scores(prunable, statistics))
    return nullcontext()


def calibration_of(subject: Subject, method: Method, kept: IntArray) -> Calibration | None:
    """What stands in for what a method removes: its own compensation or, like for all others, the evaluator's."""
    statistics = subject.evaluator.statistics
    if method.flap_bias and statistics is not None:
        return FlapBias(subject.evaluator.prunable, statistics)
    return subject.evaluator.final_calibration(kept)


@contextmanager
def final_model(subject: Subject, cell: Cell, method: Method) -> Iterator[PreTrainedModel]:
    """Inside, the model is the one that a method ended with, calibrated as when it was measured.

    Args:
        subject: the model, ranked as it was.
        cell: what the method answered.
        method: of the cell.

    Raises:
        ValueError: the method removes no groups, but makes a model of its own.
        RuntimeError: it cannot be made again, because memory does not do for its calibration now.
    """
    if cell.kept is None:
        raise ValueError(f"{cell.method} removes no groups: take the model that it made")
    evaluator = subject.evaluator
    kept = evaluator.prunable.check_kept(cell.kept)
    with ranking_of(subject, method):
        # What was calibrated by Eqs. 6-7 alone for want of memory stays so: it is what was measured.
        made = evaluator.calibration if cell.calibration == "ridge" else calibration_of(subject, method, kept)
        if calibration_kind(made) != cell.calibration:
            raise RuntimeError(f"its perplexity is of a model calibrated as {cell.calibration}, and that fails now")
        with evaluator.prunable.pruned(kept, made) as model:
            yield model


def ask_final(subject: Subject, cell: Cell, method: Method) -> Cell:
    """The cell with the zero-shot accuracies of the model that it ends with; it raises as :func:`final_model` does."""
    with final_model(subject, cell, method) as model:
        return ask(subject, cell, model)


def ask(subject: Subject, cell: Cell, model: PreTrainedModel) -> Cell:
    """The cell with the zero-shot accuracies of a model."""
    scores, stderrs = subject.ask(model)
    return replace(cell, zero_shot=scores, zero_shot_stderr=stderrs)


def with_room(subject: Subject, measure: Callable[[], T]) -> T:
    """What ``measure`` returns; where memory runs out beside the pass that calibrations share, it is called again.

    Args:
        subject: whose pass is given up then, and made anew by the next calibration.
        measure: does the work, and can do it twice.
    """
    try:
        return measure()
    except RuntimeError as error:
        if not is_out_of_memory(error) or not subject.evaluator.give_up_dense_pass():
            raise
    # Out of the handler, so that nothing holds on to what was made.
    release_memory()
    logger.warning("out of memory beside the dense model's pass: once more without it")
    return measure()
