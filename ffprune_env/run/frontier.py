"""Perplexity against the size of the file, over the sparsities of a run: what a search is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ffprune_env.budget.even import BASELINES
from ffprune_env.limits.limit import LimitName
from ffprune_env.run.best import fell_back, read_best
from ffprune_env.run.config import require_by_sparsity, targets_of
from ffprune_env.run.folder import RunFolder, part_of

#: The name of what a search for one sparsity alone chose.
ALONE = "one σ alone"
# How models are re-fitted: where one of these differs perplexities differ by it, whatever was kept.
_REFITTED = ("calibration", "ridge", "ridge_scale", "openings")
_BYTES = {"torch.float32": 4, "torch.float64": 8}


@dataclass(frozen=True)
class Point:
    """A model that can be had.

    Attributes:
        policy: ``dense``, ``uniform``, ``ffn-only``, ``chosen``, or of another run ``one σ alone``.
        sparsity: σ that was asked for; 0 for the dense model.
        size: of its weights, in MiB.
        test_ppl: of the model that is written: calibrated, if the run calibrates; infinite of one that collapsed.
        later: whether its sparsity is none that the run measured, but was asked for when it had ended.
        fell_back: whether it is not calibrated as was asked for, and so does not compare with those that are.
    """

    policy: str
    sparsity: float
    size: float
    test_ppl: float
    later: bool = False
    fell_back: bool = False


def frontier(run: Path, beside: Sequence[Path] = ()) -> list[Point]:
    """The models of a run: of all its sparsities, of those that were asked for later, and of searches beside it.

    Args:
        run: its folder.
        beside: folders of searches for one sparsity alone, of the same model on the same test text, re-fitted in the
            same way.

    Raises:
        ValueError: a run is not one, or has not ended; or one beside it is of more sparsities, or of something else.
    """
    folder = RunFolder(run)
    points: dict[tuple[str, float], Point] = {}
    for part, later in _parts(folder).items():
        for point in _points(part, folder, later):
            points.setdefault((point.policy, point.sparsity), point)
    for other in beside:
        searched = RunFolder(other)
        require_by_sparsity(searched.read_config(), other)
        if len(targets_of(searched.read_config(), other).targets) > 1:
            raise ValueError(f"{other} is not of a search for one sparsity: put runs beside it that are")
        same = {name: searched.identity().get(name) for name in ("dtype", "config", "code", "weights", "test text")}
        changed = [name for name, value in same.items() if folder.identity().get(name) != value]
        if changed:
            raise ValueError(f"{other} has another {changed[0]} than {run}: put runs beside it that have the same")
        _require_refitted_alike(searched, folder)
        chosen = next(point for point in _points(searched, searched) if point.policy == "chosen")
        points[str(other), chosen.sparsity] = replace(chosen, policy=ALONE)
    return list(points.values())


def _require_refitted_alike(other: RunFolder, run: RunFolder) -> None:
    """Raises ValueError, which names the setting, if the models of two runs are re-fitted in different ways."""
    theirs, ours = other.read_config(), run.read_config()
    for name in _REFITTED:
        if theirs.get(name) != ours.get(name):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{other.path} was made with {flag} {theirs.get(name)}, and {run.path} with {ours.get(name)}: put runs "
                f"beside it that have the same"
            )
        if theirs.get(name) == "none":  # nothing is, whatever the others say
            return


def _parts(run: RunFolder) -> dict[RunFolder, bool]:
    """The folders with the models of a run, and whether each was asked for when the search had ended."""
    config, path = run.read_config(), run.path
    targets = targets_of(config, path).targets
    there = [file.parent for file in sorted(path.glob("s*/best.json"))]
    if any(config.get(name) is not None for name in get_args(LimitName)):
        # Its sparsities are those that it may look in, and none of them is reported.
        if not there:
            raise ValueError(
                f"{path} holds no s*/best.json: it has not ended, go on with it by --resume {path}; or no model meets "
                f"its limit, write one by ffprune allocate {path} --sparsity"
            )
        every = [RunFolder(part) for part in there]
        return {part: "limit" not in (part.read_json("best.json") or {}) for part in every}
    own = [path] if len(targets) == 1 else [part_of(path, target) for target in targets]
    parts = dict.fromkeys(own, False) | {part: True for part in there if part not in own}
    return {RunFolder(part): later for part, later in parts.items()}


def _points(part: RunFolder, run: RunFolder, later: bool = False) -> list[Point]:
    """The models that the ``best.json`` of a part of a run is about."""
    best = read_best(part, run.path)
    final: Mapping[str, Any] = best.get("calibration", best)
    manifest = run.read_json("manifest.json") or {}
    each = _BYTES.get(str(manifest.get("dtype")), 2)
    asked = run.read_config().get("calibration")
    found = {policy: final[policy] for policy in ("dense", *BASELINES, "chosen") if policy in final}
    return [
        Point(
            policy, float(best["target_sparsity"]), x["params"] * each / 2**20, x["test_ppl"], later,
            fell_back(best, policy, asked),
        )
        if policy != "dense"
        else Point(policy, 0.0, x["params"] * each / 2**20, x["test_ppl"])
        for policy, x in found.items()
    ]  # fmt: skip
