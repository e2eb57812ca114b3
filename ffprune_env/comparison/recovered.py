"""What methods of a comparison are worth after recovery: the final model of a cell, trained, and measured again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ffprune_env.comparison.cell import Cell
from ffprune_env.comparison.contest import final_model
from ffprune_env.comparison.plan import ANSWERING
from ffprune_env.comparison.rebuilt import REBUILDERS, rebuild_and_measure
from ffprune_env.comparison.subject import Subject
from ffprune_env.lm.excess import share_removed, share_text
from ffprune_env.lm.same_model import require_same_model, rounding_tolerance
from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK, ONE_SEED_FELL_BACK
from ffprune_env.recovery.recover import recover
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.text import RecoveryText

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RecoveredCell:
    """One method at one sparsity, recovered.

    Attributes:
        method, target_sparsity, seed: of the cell.
        recovery_seed: of the recovery.
        dense_ppl, before_ppl, after_ppl: perplexities on test text: of the dense model, of what the method ends with,
            calibrated, and of the same recovered.
        zero_shot_before, zero_shot_after: accuracies by task, and their ``average``; None if nothing was asked.
        recovery: what training did, by the names of :class:`~ffprune_env.recovery.session.Recovery`.
        settings: of the training.
        recovery_text: what was trained on; None is the text of the comparison.
        text_digest: of all that was trained on and stopped by.
        versions: of what trained and measured, as :func:`~ffprune_env.lm.identity.identity_of_versions` has them.
        fell_back: whether what was trained was not calibrated as it was to be, as of a cell of a comparison.
    """

    method: str
    target_sparsity: float
    seed: int | None
    recovery_seed: int
    dense_ppl: float
    before_ppl: float
    after_ppl: float
    zero_shot_before: dict[str, float] | None
    zero_shot_after: dict[str, float] | None
    recovery: dict[str, Any]
    settings: dict[str, Any]
    recovery_text: str | None = None
    text_digest: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    fell_back: bool = False


def final_copy(subject: Subject, cell: Cell) -> PreTrainedModel:
    """The model that a method ended with, calibrated: made again, and apart from the one that everything is made of.

    Args:
        subject: the model, ranked as it was.
        cell: what the method answered.

    Raises:
        RuntimeError: that model cannot be made again, because memory does not do for its calibration now.
    """
    if cell.method in REBUILDERS:
        return rebuild_and_measure(subject, cell.method, cell.target_sparsity)[1]
    with final_model(subject, cell, ANSWERING[cell.method]) as model:
        return copy.deepcopy(model)


def recover_cell(
    subject: Subject, cell: Cell, text: RecoveryText, settings: RecoverySettings, dense_ppl: float
) -> RecoveredCell:
    """Recovers what a method ended with, and measures it before and after.

    Args:
        subject: the model, ranked as it was, and its test text.
        cell: what the method answered.
        text: to train on.
        settings: the same for every method.
        dense_ppl: perplexity of the dense model on test text.

    Raises:
        ValueError: the model that was made again is not the one that the cell measured.
        RuntimeError: it cannot be made again, or memory runs out.
    """
    model = final_copy(subject, cell)
    before, _ = subject.test(model)
    then = cell.test_ppl if cell.calibrated_test_ppl is None else cell.calibrated_test_ppl
    require_same_model(before, then, rounding_tolerance(model.dtype), f"{cell.file}, made again")
    asked_before, _ = subject.ask(model)
    result = recover(model, subject.evaluator.prunable.model, text.train, settings, held_out=text.held_out)
    after, _ = subject.test(model)
    asked_after, _ = subject.ask(model)
    return RecoveredCell(
        method=cell.method,
        target_sparsity=cell.target_sparsity,
        seed=cell.seed,
        recovery_seed=settings.seed,
        dense_ppl=dense_ppl,
        before_ppl=before,
        after_ppl=after,
        zero_shot_before=asked_before,
        zero_shot_after=asked_after,
        recovery=asdict(result),
        settings=asdict(settings),
        fell_back=cell.fell_back,
    )


def recovered_markdown(cells: Sequence[RecoveredCell]) -> str:
    """A table for every sparsity, the best after recovery first; means over seeds of search and recovery.

    Args:
        cells: what was measured.
    """
    parts = []
    for sparsity in sorted({cell.target_sparsity for cell in cells}):
        here = [cell for cell in cells if cell.target_sparsity == sparsity]
        rows = [_row([cell for cell in here if cell.method == name]) for name in {cell.method: 0 for cell in here}]
        fell_back = {cell.method for cell in here if cell.fell_back}
        order = {name: i for i, (name, *_) in enumerate(sorted(rows, key=lambda row: row[2]), start=1)}
        lines = [
            f"## σ = {sparsity:g}, dense PPL {here[0].dense_ppl:.2f}",
            "",
            "| method | PPL before | PPL recovered | lowest to highest | e removed | rank before | zero-shot before "
            "| zero-shot recovered | models |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, n, before, after, low, high, removed, asked in sorted(rows, key=lambda row: row[3]):
            gone = share_text(removed)
            mark = f" {FELL_BACK_MARK}" if name in fell_back else ""
            lines.append(
                f"| `{name}`{mark} | {before:.2f} | {after:.2f} | {low:.2f} to {high:.2f} | {gone} | {order[name]} "
                f"| {asked[0]} | {asked[1]} | {n} |"
            )
        parts.append("\n".join(lines))
    if any(cell.fell_back for cell in cells):
        parts.append(ONE_SEED_FELL_BACK)
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[RecoveredCell]) -> tuple[str, int, float, float, float, float, float, tuple[str, str]]:
    after = [cell.after_ppl for cell in cells]
    removed = fmean(share_removed(x.after_ppl, x.before_ppl, x.dense_ppl) for x in cells)
    every = zip(*map(_asked, cells), strict=True)
    asked = [[x["average"] for x in found if x is not None and "average" in x] for found in every]
    shown = [_mean_accuracy(found, len(cells)) for found in asked]
    before = fmean(cell.before_ppl for cell in cells)
    return cells[0].method, len(cells), before, fmean(after), min(after), max(after), removed, (shown[0], shown[1])


def _mean_accuracy(found: Sequence[float], n: int) -> str:
    """The mean of what was found, and of how many models it is where not all n were asked."""
    if not found:
        return "–"
    return f"{fmean(found):.3f}" + (f" ({len(found)} of {n})" if len(found) < n else "")


def _asked(cell: RecoveredCell) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    return cell.zero_shot_before, cell.zero_shot_after
