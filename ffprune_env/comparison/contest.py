"""Methods against each other on one model: each answers the same problem, and its answer is measured the same way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from ffprune_env.budget.arrays import IntArray
from ffprune_env.comparison.cells import Cell
from ffprune_env.comparison.policies import KeptPolicies
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.rewarded import RewardedEvaluator
from ffprune_env.lm.batches import is_out_of_memory, release_memory
from ffprune_env.lm.intervals import perplexity_interval
from ffprune_env.lm.loss import perplexity_of, window_losses
from ffprune_env.methods.ppo import Found
from ffprune_env.methods.rebuilding.low_rank import lacking_update
from ffprune_env.methods.rebuilding.slicegpt import slicegpt
from ffprune_env.methods.rebuilding.svd_llm import svd_llm
from ffprune_env.methods.registry import Method, WarmStart, settings_of
from ffprune_env.pruning.calibration_kind import calibration_kind
from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.prunable import Calibration
from ffprune_env.pruning.saliency import wifv_scores
from ffprune_env.search.problem import Problem, StartName
from ffprune_env.search.saved_policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ffprune_env.evaluators.zero_shot import ZeroShot

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Parts of the budget after which what a search would return is measured on search text, for its trace.
MARKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)

Rebuilder = Callable[["PreTrainedModel", torch.Tensor, int, int], "PreTrainedModel"]
#: Methods that rebuild the weights of a copy: (model, calibration windows, parameters to remove, batch size) to it.
REBUILDERS: dict[str, Rebuilder] = {"svd-llm": svd_llm, "slicegpt": slicegpt}
ZeroShotTest = Callable[["PreTrainedModel"], "ZeroShot"]


@dataclass(frozen=True)
class Paid:
    """What a method answers at one sparsity, and what that cost: of one search for several, an equal share each.

    Attributes:
        kept: groups kept per unit.
        trace: (windows charged, groups that would have been kept then), ascending.
        budget: windows of search text that it could have been charged.
        spent: windows that it was charged.
        seen: windows that the model read.
        seconds: that it took.
        learned: what a search by PPO leaves for others to start from.
    """

    kept: IntArray
    trace: Sequence[tuple[float, IntArray]]
    budget: float
    spent: float
    seen: float
    seconds: float
    learned: Policy | None = None


@dataclass(frozen=True)
class Subject:
    """The model that methods are compared on, and all that is the same for every one of them.

    Attributes:
        evaluator: the model, its search text, calibration and statistics; its reward is what searches see.
        plain: the same with the model that is only cut as reward.
        calibration_windows: int64 [n, seq_len], what statistics and calibration were made from.
        test_windows: int64 [n, seq_len].
        batch_size: windows per forward pass, fewer where memory runs out; None chooses. Methods that rebuild weights
            take it as it is, and one window where it is None.
        zero_shot: what to ask the final models, if anything.
        targets: all sparsities that are compared at, for methods that answer them by one search.
        start: where searches start.
        policies: where searches leave what they have learnt, and others take it from; None keeps nothing.
        remembered: what such searches found, so that the next sparsity takes it from here; of this subject alone.
    """

    evaluator: LMEvaluator
    plain: LMEvaluator
    calibration_windows: torch.Tensor
    test_windows: torch.Tensor
    batch_size: int | None = None
    zero_shot: ZeroShotTest | None = None
    targets: tuple[float, ...] = ()
    start: StartName = "own"
    policies: KeptPolicies | None = None
    remembered: dict[Hashable, dict[float, Paid]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def all_targets(self, sparsity: float) -> tuple[float, ...]:
        """All sparsities that are compared at, ascending, of which ``sparsity`` is one."""
        return tuple(sorted({*self.targets, sparsity}))

    def test(self, model: PreTrainedModel) -> tuple[float, tuple[float, float] | None]:
        """Perplexity of a model on test text, with its interval if there is one."""
        losses = window_losses(model, self.test_windows, self.batch_size)
        return perplexity_of(losses), perplexity_interval(losses)

    def held_out(self) -> Callable[[PreTrainedModel], dict[str, float] | None]:
        """What measures a final model by the reward on data that no search saw; it says None where text is rewarded.

        The model is dense when this is called, and nothing else is measured in between.
        """
        if isinstance(self.evaluator, RewardedEvaluator):
            return self.evaluator.held_out(self.test_windows)
        return lambda model: None

    def ask(self, model: PreTrainedModel) -> tuple[dict[str, float] | None, dict[str, float] | None]:
        """Accuracies of a model on the zero-shot tasks and of their average, and standard errors; None if not asked."""
        if self.zero_shot is None:
            return None, None
        asked = self.zero_shot(model)
        scores = {name: result.score for name, result in asked.tasks.items()} | {"average": asked.average}
        stderrs = {name: result.score_stderr for name, result in asked.tasks.items()}
        known = {name: x for name, x in (stderrs | {"average": asked.average_stderr}).items() if x is not None}
        return scores, known


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
            params = parameters_of(model)
        calibration = calibration_of(subject, method, kept)
        calibrated_ppl = calibrated_interval = None
        if calibration is not None:
            with prunable.pruned(kept, calibration) as model:
                params = parameters_of(model)  # FLAP's compensation adds biases
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
        search_ppl=None if method.flap_bias else subject.evaluator.of_text.measure(kept, n_windows),
        test_ppl=test_ppl,
        test_interval=interval,
        calibrated_test_ppl=calibrated_ppl,
        calibrated_test_interval=calibrated_interval,
        evaluations=paid.spent / n_windows,
        tokens=round(paid.spent * tokens_per_window),
        tokens_seen=round(paid.seen * tokens_per_window),
        seconds=paid.seconds,
        trace=[(round(spent * tokens_per_window), ppl) for spent, ppl in progress(paid, subject.evaluator)],
        calibration=calibration_kind(calibration),
        calibration_asked="flap-bias" if method.flap_bias else subject.evaluator.calibration_asked,
        settings=settings_of(method, subject.all_targets(sparsity)),
        held_out=held_out,
    )


def answer_of(subject: Subject, method: Method, sparsity: float, seed: int, evaluations: int) -> Paid:
    """What a method answers and what it is charged; a search for several sparsities is run once, and remembered.

    Args:
        subject: the model and its texts.
        method: the method.
        sparsity: σ.
        seed: of what it draws.
        evaluations: its budget at one sparsity; of a search for several, the share of each.
    """
    targets = subject.all_targets(sparsity) if method.answer_all else (sparsity,)
    which = (method, seed, evaluations, targets)
    if which in subject.remembered:
        return subject.remembered[which][sparsity]
    evaluator = subject.plain if method.plain_reward else subject.evaluator
    evaluator.forget()  # or a method would be answered from what another one measured, and seem faster than it is
    started = time.perf_counter()
    n = len(targets)
    init = subject.start if method.warm is None else policy_for(subject, method.warm, seed)
    problem = Problem.of(evaluator, sparsity, evaluations=n * evaluations, seed=seed, targets=targets, init=init)
    meter = problem.meter
    if method.answer_all is None:
        found = {sparsity: Found(method.answer(problem), meter.trace)}
    else:
        found = dict(method.answer_all(problem))
    seconds = time.perf_counter() - started
    shares = {
        target: Paid(
            kept=one.allocation.kept,
            trace=[(spent / n, kept) for spent, kept in one.trace],
            budget=meter.budget / n,
            spent=meter.spent / n,
            seen=meter.seen / n,
            seconds=seconds / n,
            learned=problem.learned[-1] if problem.learned else None,
        )
        for target, one in found.items()
    }
    if method.answer_all is not None:
        subject.remembered[which] = shares
    return shares[sparsity]


def policy_for(subject: Subject, warm: WarmStart, seed: int) -> Policy:
    """What another search of this comparison has learnt; ValueError if there is none."""
    if subject.policies is None:
        raise ValueError(f"nothing is kept of what {warm.method} has learnt: a folder of a comparison is needed")
    return subject.policies.find(warm.method, warm.sparsity, seed)


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


def parameters_of(model: PreTrainedModel) -> int:
    """Parameters of a model as it is now, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


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


def ask_final(subject: Subject, cell: Cell, method: Method) -> Cell:
    """The cell with the zero-shot accuracies of the model that it ends with, calibrated.

    Raises:
        RuntimeError: that model cannot be made again, because memory does not do for its calibration now.
    """
    if cell.kept is None:
        raise ValueError(f"{cell.method} removes no groups: ask the model that it made")
    evaluator = subject.evaluator
    kept = evaluator.prunable.check_kept(cell.kept)
    with ranking_of(subject, method):
        # What was calibrated by Eqs. 6-7 alone for want of memory stays so: what is asked is what was measured.
        made = evaluator.calibration if cell.calibration == "ridge" else calibration_of(subject, method, kept)
        if calibration_kind(made) != cell.calibration:
            raise RuntimeError(f"its perplexity is of a model calibrated as {cell.calibration}, and that fails now")
        with evaluator.prunable.pruned(kept, made) as model:
            return ask(subject, cell, model)


def ask(subject: Subject, cell: Cell, model: PreTrainedModel) -> Cell:
    """The cell with the zero-shot accuracies of a model."""
    scores, stderrs = subject.ask(model)
    return replace(cell, zero_shot=scores, zero_shot_stderr=stderrs)


def progress(paid: Paid, evaluator: LMEvaluator) -> list[tuple[float, float]]:
    """What the method would have returned after parts of its budget: (windows spent, perplexity on N_max windows).

    Args:
        paid: what the method answered, with what it noted on the way.
        evaluator: measures, the same for all methods, whatever they were rewarded for.
    """
    points = []
    for mark in MARKS:
        noted = [kept for spent, kept in paid.trace if spent <= mark * paid.budget]
        if noted:
            ppl = evaluator.of_text.measure(noted[-1], evaluator.max_samples)
            points.append((min(round(mark * paid.budget), paid.spent), ppl))
    return points


def rebuild_and_measure(subject: Subject, name: str, sparsity: float) -> tuple[Cell, PreTrainedModel]:
    """Lets a method of :data:`REBUILDERS` remove what pruning at σ removes, from a copy; measures that, and returns it.

    Args:
        subject: the model and its texts.
        name: of the method.
        sparsity: σ; as many parameters of the whole model go as it takes from Σw.

    Raises:
        ValueError: the method cannot remove as much.
    """
    prunable = subject.evaluator.prunable
    subject.evaluator.give_up_dense_pass()  # the copy needs the room
    wanted = round(sparsity * sum(unit.n_params for unit in prunable.units))
    started = time.perf_counter()
    model = REBUILDERS[name](prunable.model, subject.calibration_windows, wanted, subject.batch_size or 1)
    seconds = time.perf_counter() - started
    params = parameters_of(model)
    test_ppl, interval = subject.test(model)
    cell = Cell(
        method=name,
        target_sparsity=sparsity,
        seed=None,
        kept=None,
        sparsity=None,
        total_sparsity=1 - params / prunable.n_params,
        params=params,
        search_ppl=None,
        test_ppl=test_ppl,
        test_interval=interval,
        calibrated_test_ppl=None,
        calibrated_test_interval=None,
        evaluations=0,
        tokens=0,
        tokens_seen=0,
        seconds=seconds,
        trace=[],
        lacks_update=lacking_update(model),
        held_out=subject.held_out()(model),
    )
    return cell, model
