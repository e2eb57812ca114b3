"""What ``best.json`` told of an answer before it is measured again: nothing of that is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ffprune_env.budget.even import BASELINES
from ffprune_env.budget.units import PruneUnit
from ffprune_env.lm.identity import identity_of_versions
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.results import PolicyResult
from ffprune_env.run.strict_json import as_measured
from ffprune_env.search.finalists import Answer

#: What is told of a search beside what it chose.
SEARCHED = (
    "evaluations", "evaluations_for_target", "seconds", "search_cost_windows", "scores_at_bound", "added_to_start"
)  # fmt: skip
#: Where ``best.json`` says with which versions it was measured, where those need not be the run's.
MEASURED_WITH = "measured_with"
_FIELDS = tuple(field.name for field in fields(PolicyResult))


@dataclass(frozen=True)
class ToldBefore:
    """What is known of an answer before it is measured; by default nothing.

    Attributes:
        search: how it was found, as ``best.json`` has it.
        cost: what came to it, as ``best.json`` has it; None where it is not told.
        plain: what it is compared with, as that was cut, by name.
        calibrated: the same, calibrated.
    """

    search: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] | None = None
    plain: Mapping[str, PolicyResult] = field(default_factory=dict)
    calibrated: Mapping[str, PolicyResult] = field(default_factory=dict)


def told_before(
    part: RunFolder, sparsity: float, answer: Answer, units: tuple[PruneUnit, ...], run: RunFolder
) -> ToldBefore:
    """What the folder of a sparsity tells of this answer; nothing if it tells of another one, or is damaged.

    Figures that other versions of ffprune, torch or transformers measured are not told: those of now would stand in one
    table with them.

    Args:
        part: the folder, of the same run on the same texts.
        sparsity: σ that was asked for.
        answer: what to keep.
        units: the N units.
        run: the run itself, whose versions measured what does not say it.
    """
    try:
        best = as_measured(part.read_json("best.json") or {})
        chosen = best["chosen"]
        if best["target_sparsity"] != sparsity or chosen["kept"] != answer.allocation.kept.tolist():
            return ToldBefore()
        # A run that went on has learnt something else, which may come to the same groups.
        if not np.allclose(chosen["scores"], answer.scores, rtol=0, atol=1e-9):
            return ToldBefore()
        search, cost = {name: best[name] for name in SEARCHED if name in best}, best.get("cost")
        if not _of_now(best.get(MEASURED_WITH) or run.identity()):
            return ToldBefore(search, cost)
        known = {name: find(sparsity, units).kept.tolist() for name, find in BASELINES.items() if name in best}
        final = best.get("calibration", {})
        return ToldBefore(
            search,
            cost,
            {name: _result(best[name]) for name, kept in known.items() if best[name]["kept"] == kept},
            {name: _result(final[name]) for name, kept in known.items() if final.get(name, {}).get("kept") == kept},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ToldBefore()


def _of_now(versions: Mapping[str, Any]) -> bool:
    """Whether these versions measure now."""
    return all(versions.get(name) == version for name, version in identity_of_versions().items())


def _result(content: Mapping[str, Any]) -> PolicyResult:
    told = {name: content[name] for name in _FIELDS if name in content}
    return PolicyResult(**{**told, "kept": np.array(content["kept"], dtype=np.int64)})
