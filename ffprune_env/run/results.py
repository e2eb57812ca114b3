"""What is reported about a policy: its size and its perplexity on search and on test text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from rich.table import Table

from ffprune_env.budget.allocation import Allocation, whole
from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.even import BASELINES
from ffprune_env.budget.units import PruneUnit, attention_can_be_cut
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.objectives.mix import reward_of
from ffprune_env.evaluators.rewarded import RewardedEvaluator
from ffprune_env.lm.cost import Cost, counting
from ffprune_env.lm.loss import perplexity_in_steps
from ffprune_env.lm.phases import Advance, phase, windows_size
from ffprune_env.pruning.calibration_kind import FELL_BACK, FELL_BACK_MARK, CalibrationKind, calibration_kind
from ffprune_env.pruning.sinks import MANY_LOST, Sinks, find_sinks, lost_sinks
from ffprune_env.texts.bos import BosProtocol, stated

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyResult:
    """One policy, measured; the objects of ``best.json``.

    Attributes:
        kept: int64 [N], groups kept per unit.
        sparsity: fraction of Σ w removed.
        total_sparsity: fraction of all parameters of the model removed.
        params: parameters that stay.
        calibrated: whether the surviving weights were re-fitted.
        calibration: with what, as :func:`~ffprune_env.pruning.calibration_kind.calibration_kind` names it.
        search_ppl: perplexity on the windows of search text that policies were chosen by: those that the search
            measured on, and those that its finalists were ranked on.
        test_ppl: perplexity on test text.
        held_out: what the reward measures on data that no search saw, where that is not test text alone: ``loss``, and
            what it is made of, by name.
        lost_sinks: share of the tokens of test text that the dense model marks as the first of a window, for heads to
            attend to, and this one does not; None where the dense one marks none, or nobody looked.
    """

    kept: IntArray
    sparsity: float
    total_sparsity: float
    params: int
    calibrated: bool
    calibration: CalibrationKind
    search_ppl: float
    test_ppl: float
    held_out: dict[str, float] | None = None
    lost_sinks: float | None = None


@dataclass(frozen=True)
class Measured:
    """All policies of a run.

    Attributes:
        plain: results by name, as the models were cut; one named ``chosen`` is called searched.
        calibrated: the same with the surviving weights re-fitted; empty without calibration.
        asked: how those were to be calibrated; some may not be, see
            :meth:`~ffprune_env.evaluators.language_model.LMEvaluator.final_calibration`.
        saved: the chosen policy measured again on the model that was read back from disk, if it was written.
        calibrating: by name, what it cost to re-fit the surviving weights, where that was not done before.
    """

    plain: dict[str, PolicyResult]
    calibrated: dict[str, PolicyResult]
    asked: CalibrationKind
    saved: PolicyResult | None = None
    calibrating: dict[str, Cost] = field(default_factory=dict)

    @property
    def final(self) -> dict[str, PolicyResult]:
        """What the user gets: calibrated, if there is a calibration."""
        return self.calibrated or self.plain


def _uncounted(steps: int = 1, note: str = "") -> None:
    """For who does not want to know how far it is."""


def measure_policy(
    evaluator: LMEvaluator,
    kept: IntArray,
    test_windows: torch.Tensor,
    batch_size: int | None = 1,
    calibrated: bool = False,
    advance: Advance = _uncounted,
    sinks: Sinks | None = None,
) -> PolicyResult:
    """Measures one policy on the search text that policies were chosen by, and on test text.

    Args:
        evaluator: the model, its search text and, where it is asked for, its calibration.
        kept: int64 [N], groups kept per unit.
        test_windows: int64 [n, seq_len].
        batch_size: windows per forward pass; None chooses.
        calibrated: re-fit the surviving weights first, whatever the evaluator's reward does.
        advance: called with the number of windows after every batch.
        sinks: of the dense model, for who wants to know how many are lost.
    """
    prunable = evaluator.prunable
    calibration = evaluator.final_calibration(kept) if calibrated else None
    reported = evaluator.held_out(test_windows) if isinstance(evaluator, RewardedEvaluator) else None
    with prunable.pruned(kept, calibration) as model:
        search_ppl = perplexity_in_steps(model, evaluator.chosen_on, batch_size, advance)
        test_ppl = perplexity_in_steps(model, test_windows, batch_size, advance)
        held_out = None if reported is None else reported(model)
        lost = lost_sinks(sinks, model)
    return PolicyResult(
        kept=kept,
        sparsity=prunable.sparsity(kept),
        total_sparsity=prunable.total_sparsity(kept),
        params=prunable.params(kept),
        calibrated=calibrated,
        calibration=calibration_kind(calibration),
        search_ppl=search_ppl,
        test_ppl=test_ppl,
        held_out=held_out,
        lost_sinks=lost,
    )


def measure_policies(
    evaluator: LMEvaluator,
    policies: Mapping[str, Allocation],
    test_windows: torch.Tensor,
    batch_size: int | None = 1,
    before: Measured | None = None,
) -> Measured:
    """Measures every policy as it is cut and, if the evaluator has a calibration, calibrated.

    Args:
        evaluator: as for :func:`measure_policy`, like the two arguments after ``policies``.
        policies: what to keep, by name.
        test_windows: int64 [n, seq_len].
        batch_size: windows per forward pass; None chooses.
        before: policies that were measured already; none of them is measured again.
    """
    size = f"{windows_size(tuple(evaluator.chosen_on.shape))} and {windows_size(tuple(test_windows.shape))}"
    total = len(evaluator.chosen_on) + len(test_windows)
    plain = {} if before is None else dict(before.plain)
    calibrated = {} if before is None else dict(before.calibrated)
    calibrating = {} if before is None else dict(before.calibrating)
    sinks = find_sinks(evaluator.prunable.model, test_windows, evaluator.bos)
    for name, x in policies.items():
        if name in plain:
            continue
        with phase(f"measuring {label(name)}", size, total) as advance:
            plain[name] = measure_policy(evaluator, x.kept, test_windows, batch_size, False, advance, sinks)
    for name, x in policies.items() if evaluator.calibration is not None else ():
        if name in calibrated:
            continue
        if all(x.rates == 1):  # there is nothing to stand in for
            calibrated[name] = replace(plain[name], calibrated=True, calibration=evaluator.calibration_asked)
            continue
        with counting(evaluator.devices) as tally:
            evaluator.final_calibration(x.kept)  # a phase of its own
        calibrating[name] = tally.cost
        with phase(f"measuring {label(name)}, calibrated", size, total) as advance:
            calibrated[name] = measure_policy(evaluator, x.kept, test_windows, batch_size, True, advance, sinks)
    measured = Measured(_in_order(plain), _in_order(calibrated), evaluator.calibration_asked, None, calibrating)
    if "chosen" in policies:
        _warn_of_lost_sinks(evaluator, measured.final["chosen"].lost_sinks)
    saved = None if before is None else before.saved
    return replace(measured, saved=saved)


def _warn_of_lost_sinks(evaluator: LMEvaluator, lost: float | None) -> None:
    if lost is None or lost <= MANY_LOST:
        return
    advice = "a lower sparsity keeps more"
    if evaluator.calibration is None:
        advice = "a calibration restores them (--calibration ridge)"
    elif evaluator.openings is None:
        advice = "--openings 24 lets the calibration see how texts begin"
    logger.warning(
        "the pruned model has lost its attention sink behind %.1f %% of the tokens that a text can begin with, and "
        "predicts badly what begins so: %s",
        100 * lost,
        advice,
    )


def _in_order(results: Mapping[str, PolicyResult]) -> dict[str, PolicyResult]:
    """As tables have them, whatever was measured first."""
    places = {name: i for i, name in enumerate(("dense", *BASELINES))}
    return {name: results[name] for name in sorted(results, key=lambda name: places.get(name, len(places)))}


def reference_policies(sparsity: float, evaluator: LMEvaluator) -> dict[str, Allocation]:
    """What every search is compared with: the dense model, and :func:`baselines`."""
    return {"dense": whole(evaluator.units), **baselines(sparsity, evaluator.units)}


def baselines(sparsity: float, units: tuple[PruneUnit, ...]) -> dict[str, Allocation]:
    """`uniform` and `ffn-only`, as far as they reach the sparsity; one of them where they are the same."""
    policies = {}
    for name, baseline in BASELINES.items():
        if name == "ffn-only" and not attention_can_be_cut(units):
            continue  # `uniform`
        try:
            policies[name] = baseline(sparsity, units)
        except ValueError as error:
            logger.warning("no %s to compare with: %s", name, error)
    return policies


def best_policy(evaluator: LMEvaluator, results: Measured, scores: FloatArray, chosen: Allocation) -> dict[str, Any]:
    """What ``best.json`` holds of a search: every policy, cut and calibrated, and how the chosen one came about.

    Args:
        evaluator: what the policies were measured with.
        results: of the policies; one is named ``chosen``.
        scores: float64 [N], the chosen policy's.
        chosen: what they were mapped to.

    Returns:
        Results by name, and once more under ``calibration`` if there is one; ``saved`` if the model was written.
    """
    content: dict[str, Any] = {name: asdict(result) for name, result in results.plain.items()}
    content["chosen"] |= {"scores": scores, "rates": chosen.rates}
    if evaluator.calibration is not None:
        content["calibration"] = {name: asdict(result) for name, result in results.calibrated.items()}
        content["ridge_raised"] = evaluator.calibration.raised()
        content["sequential"] = results.calibrated["chosen"].calibration == "sequential"
    if results.saved is not None:
        content["saved"] = asdict(results.saved)
    return content


def results_table(results: Measured, texts: Mapping[str, torch.Tensor], bos: BosProtocol = "never") -> Table:
    """The table a person reads at the end of a run.

    Args:
        results: what was measured.
        texts: int64 [n, seq_len] by purpose, what it was measured on: ``search``, ``finalists`` and ``test``.
        bos: whether all of these windows begin with the BOS token.
    """
    n = {purpose: len(texts.get(purpose, ())) for purpose in ("search", "finalists", "test")}
    table = Table(
        title=f"Perplexity (test text: {n['test']} windows of {texts['test'].shape[1]} tokens; search text: "
        f"{n['search']} of the search and {n['finalists']} of its finalists, of {texts['search'].shape[1]} tokens"
        f"{stated(bos)})"
    )
    table.add_column("policy")
    for column in (
        "removed\nof Σw",
        "removed\nof model",
        "params\nleft",
        "search\nPPL",
        "test\nPPL",
        *(["against\nuniform"] if "uniform" in results.plain else []),
    ):
        table.add_column(column, justify="right")
    dense = results.plain.get("dense")
    measures = [] if dense is None or dense.held_out is None else [name for name in dense.held_out if name != "loss"]
    for name in (["reward"] if measures else []) + measures:
        table.add_column(f"held-out\n{name}", justify="right")
    sections = [
        {label(name): result for name, result in results.plain.items()},
        {f"{label(name)}, calibrated": x for name, x in results.calibrated.items() if x.sparsity > 0},
        {} if results.saved is None else {"searched, from disk": results.saved},
    ]
    fell_back = False
    bases = [results.plain.get("uniform"), results.calibrated.get("uniform"), results.final.get("uniform")]
    for section, uniform in zip(sections, bases, strict=True):
        for name, result in section.items():
            marked = result.calibrated and result.calibration != results.asked
            fell_back |= marked
            comparable = uniform is not None and uniform.calibration == result.calibration
            row = [
                f"{name} {FELL_BACK_MARK}" if marked else name,
                f"{result.sparsity:.2%}",
                f"{result.total_sparsity:.2%}",
                f"{result.params / 1e6:.1f} M",
                f"{result.search_ppl:.2f}",
                f"{result.test_ppl:.2f}",
            ]
            if "uniform" in results.plain:
                row.append(
                    f"{result.test_ppl / uniform.test_ppl - 1:+.1%}" if uniform is not None and comparable else ""
                )
            table.add_row(*row, *held_out_cells(result, dense, measures))
        table.add_section()
    if fell_back:
        table.caption, table.caption_justify = f"{FELL_BACK_MARK} {FELL_BACK}.", "left"
    return table


def held_out_cells(result: PolicyResult, dense: PolicyResult | None, measures: Sequence[str]) -> list[str]:
    """What a row says of data that no search saw: the reward there, and what it is made of.

    Args:
        result: of the row.
        dense: of the dense model.
        measures: names of what it is made of.
    """
    if not measures:
        return []
    if result.held_out is None or dense is None or dense.held_out is None:
        return [""] * (1 + len(measures))
    reward = reward_of(result.held_out, dense.held_out)
    return [f"{reward + 0.0:.3f}", *(f"{result.held_out[name]:.3f}" for name in measures)]


def label(name: str) -> str:
    """What people call a policy of ``best.json``."""
    return "searched" if name == "chosen" else name
