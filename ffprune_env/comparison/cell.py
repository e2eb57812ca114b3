"""What a comparison of pruning methods measured: a cell for each method, sparsity and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ffprune_env.run.strict_json import as_measured


@dataclass(frozen=True)
class Cell:
    """One method at one sparsity with one seed, searched and measured.

    Attributes:
        method: its name.
        target_sparsity: σ asked for.
        seed: of what the method drew; None if it draws nothing, and one cell stands for all seeds.
        kept: groups kept per unit; None for methods that rebuild the weights and remove no groups.
        sparsity: fraction of Σw removed; None as above.
        total_sparsity: fraction of all parameters of the model removed.
        params: parameters that stay.
        search_ppl: perplexity on the windows of an evaluation, those for finalists not included, of the calibrated
            model if that is what the comparison rewards; None for methods that have another calibration.
        test_ppl: perplexity on test text without calibration, or as a method that rebuilds the weights left them.
        test_interval: 95 % interval of it (:mod:`ffprune_env.lm.intervals`); None where windows are few or not finite.
        calibrated_test_ppl: perplexity on test text with calibration; None for methods that rebuild the weights.
        calibrated_test_interval: its interval.
        evaluations: what the method was charged, in windows, divided by those of an evaluation.
        tokens: of search text that it was charged: those of a backward pass count as two forward passes more.
        seconds: that it took, without the measurements above.
        trace: (tokens charged, search perplexity of what the method would have returned then), ascending; empty for
            methods that do not search.
        zero_shot: accuracy by task, and their ``average``, of the final model.
        zero_shot_stderr: standard errors of these.
        calibration: how the final model was calibrated, as
            :func:`~ffprune_env.pruning.calibration_kind.calibration_kind` names it.
        calibration_asked: how it was to be.
        settings: what the method was told beside the settings of the comparison: its defaults, and for one that answers
            several sparsities by one search, ``targets``: all of them.
        identity: what the figures depend on, see :mod:`ffprune_env.lm.identity`.
        tokens_seen: tokens of search text that the model read, each time that it did; None in cells of before.
        held_out: what the reward measures of the final model on data that no search saw, ``loss`` and what that is made
            of, by name; None where text alone is rewarded, and in cells of before.
        lacks_update: matrices that go without SVD-LLM's update of their factors, for want of calibration text; 0 in
            cells of before, and of all other methods.
        candidates: that the search measured, on however few windows each, less those of its last look: more than
            ``evaluations`` where a curriculum begins with few windows. Of one search for several sparsities an equal
            share; None in cells of before.
        calibration_seconds: that it took to cut and calibrate the final model, which ``seconds`` does not hold: little
            but in sequence. Of calibrations that share the dense model's pass the first pays for it. None without a
            calibration, and in cells of before.
        machine: what it was searched and measured on: ``device``, ``devices`` that the model was spread over,
            ``threads`` and ``hardware``, as :func:`~ffprune_env.run.provenance.machine_facts` has them; None in cells
            of before, which the folder's manifest speaks for.
    """

    method: str
    target_sparsity: float
    seed: int | None
    kept: list[int] | None
    sparsity: float | None
    total_sparsity: float
    params: int
    search_ppl: float | None
    test_ppl: float
    test_interval: tuple[float, float] | None
    calibrated_test_ppl: float | None
    calibrated_test_interval: tuple[float, float] | None
    evaluations: float
    tokens: int
    seconds: float
    trace: list[tuple[int, float]]
    zero_shot: dict[str, float] | None = None
    zero_shot_stderr: dict[str, float] | None = None
    calibration: str = "none"
    calibration_asked: str = "none"
    settings: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, str] | None = None
    tokens_seen: int | None = None
    lacks_update: int = 0
    held_out: dict[str, float] | None = None
    candidates: int | None = None
    calibration_seconds: float | None = None
    machine: dict[str, Any] | None = None

    @property
    def fell_back(self) -> bool:
        """Whether the final model is not calibrated as it was to be, and so not to be compared with those that are."""
        return self.calibration != self.calibration_asked

    @property
    def file(self) -> str:
        """Where it is kept, inside the folder."""
        return cell_name(self.method, self.target_sparsity, self.seed, self.settings.get("targets", ()))


@dataclass(frozen=True)
class Comparison:
    """Everything a report shows.

    Attributes:
        settings: what was compared on what.
        units: name, kind, layer and n_groups of every unit.
        n_params: parameters of the dense model.
        dense_test_ppl: its perplexity on test text.
        dense_interval: 95 % interval of it; None as of a cell.
        cells: what was measured.
        dense_zero_shot: accuracies of the dense model.
        dense_zero_shot_stderr: standard errors of these.
        dense_held_out: what the reward measures of it on data that no search saw, as of a cell.
    """

    settings: dict[str, object]
    units: list[dict[str, object]]
    n_params: int
    dense_test_ppl: float
    dense_interval: tuple[float, float] | None
    cells: list[Cell]
    dense_zero_shot: dict[str, float] | None = None
    dense_zero_shot_stderr: dict[str, float] | None = None
    dense_held_out: dict[str, float] | None = None


def cell_name(method: str, sparsity: float, seed: int | None, targets: Sequence[float] = ()) -> str:
    """The file of a cell, inside the folder.

    Args:
        method: its name.
        sparsity: σ.
        seed: of what it drew, if anything.
        targets: of a method that answers several sparsities by one search, all of them: with others it is another cell.
    """
    among = f"-of-{'-'.join(f'{100 * target:g}' for target in targets)}" if targets else ""
    return f"cells/{method}-s{100 * sparsity:g}{among}{'' if seed is None else f'-seed{seed}'}.json"


def cell_from_json(content: dict[str, Any]) -> Cell:
    """A cell as strict JSON has it; KeyError or TypeError where that is damaged."""
    content = as_measured(content)
    for name in ("test_interval", "calibrated_test_interval"):
        if content[name] is not None:
            content[name] = tuple(content[name])
    content["trace"] = [tuple(point) for point in content["trace"]]
    return Cell(**content)
