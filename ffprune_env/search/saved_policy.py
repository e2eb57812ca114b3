"""Policy: what a search has learnt, as a function of σ that answers in milliseconds (Sec. 2.2 of the paper).

Between two knots the mean of a policy is a straight line in σ. So the means at its knots are all of it, and no network
is needed to ask it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.mapping import allocate, says_rates
from ffprune_env.budget.units import PruneUnit
from ffprune_env.lm.replacing import replacing

_TENSORS, _FACTS = "policy.safetensors", "policy.json"
#: The settings that scores depend on.
MEANING = ("mapping", "a_min", "a_max", "action_scale")
# On these they depend where they say rates; where they say an order it is the same between any bounds.
_BOUNDS = ("a_min", "a_max")


@dataclass(frozen=True)
class Policy:
    """How much of every unit to keep, as a function of σ.

    Attributes:
        knots: float64 [K], sparsities, ascending.
        table: float64 [K, N], scores at the knots.
        units: the N units that are scored.
        meaning: what the scores depend on: ``mapping``, ``a_min``, ``a_max`` and ``action_scale``.
        targets: the sparsities that were searched, ascending; of a range, some that are spread over it.
        run: folder of the run that left it; None of one that was never saved.
    """

    knots: FloatArray
    table: FloatArray
    units: tuple[PruneUnit, ...]
    meaning: Mapping[str, Any]
    targets: tuple[float, ...]
    run: Path | None = None

    @classmethod
    def load(cls, run: str | Path) -> Policy:
        """Reads the policy that a run left; no code and no pickle is read.

        Args:
            run: folder of the run.

        Raises:
            ValueError: there is no such policy; the message says which file is missing or damaged.
        """
        folder = Path(run) / "checkpoints"
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            if not isinstance(facts, dict):
                raise ValueError(f"{_FACTS} must hold an object, got {type(facts).__name__}")
            if "units" not in facts:
                raise ValueError(f"{_FACTS} was left by a version whose policies were networks, search again")
            arrays = load_file(folder / _TENSORS)
            units = tuple(_unit(**unit) for unit in facts["units"])
            knots, table = (arrays[name].astype(np.float64) for name in ("knots", "table"))
            if table.shape != (len(knots), len(units)) or not np.isfinite(table).all():
                raise ValueError(f"{_TENSORS} does not hold {len(units)} scores at every knot")
            meaning = {name: facts[name] for name in MEANING}
            return cls(knots, table, units, meaning, tuple(facts["targets"]), Path(run))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"no policy can be read from {run}, a folder that a search left is needed: {reason}"
            ) from error

    def save(self, folder: Path) -> None:
        """Writes ``policy.safetensors`` and ``policy.json``, each in one move.

        Args:
            folder: where; it must exist.
        """
        facts = {"units": [asdict(unit) for unit in self.units], **self.meaning, "targets": list(self.targets)}
        with replacing(folder / _FACTS) as described, replacing(folder / _TENSORS) as arrays:
            save_file({"knots": np.ascontiguousarray(self.knots), "table": np.ascontiguousarray(self.table)}, arrays)
            described.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def scores(self, sparsity: float) -> FloatArray:
        """Scores at a sparsity: [N]; beyond the knots those of the nearest one."""
        return np.array([np.interp(sparsity, self.knots, column) for column in self.table.T])

    def allocate(self, sparsity: float) -> Allocation:
        """How much of every unit to keep.

        Args:
            sparsity: σ, between the first and the last knot: of a range that was searched any in it.

        Raises:
            ValueError: the sparsity is outside of what the policy knows; the message gives the range.
        """
        low, high = float(self.knots[0]), float(self.knots[-1])
        if not low - 1e-9 <= sparsity <= high + 1e-9:
            raise ValueError(f"the policy knows sparsities from {low:g} to {high:g}, got {sparsity:g}: search there")
        bounds = {name: self.meaning[name] for name in ("a_min", "a_max", "mapping")}
        return allocate(self.scores(sparsity), sparsity, self.units, **bounds)

    def require_fits(self, units: Sequence[PruneUnit], meaning: Mapping[str, Any]) -> None:
        """Raises ValueError if it is of another model, or its scores meant something else; the message says what.

        Args:
            units: the units that it must score, in whatever groups they are pruned.
            meaning: the settings that scores depend on.
        """
        if [unit.n_params for unit in self.units] != [unit.n_params for unit in units]:
            raise ValueError(f"the policy of {self.run} is of a model with other units: start from a run on this model")
        if [unit.costs for unit in self.units] != [unit.costs for unit in units]:
            raise ValueError(f"the policy of {self.run} was searched for another measure of a budget: start from none")
        ordered = not says_rates(meaning["mapping"])
        for name, value in meaning.items():
            if self.meaning[name] != value and not (ordered and name in _BOUNDS):
                raise ValueError(
                    f"the policy of {self.run} was trained with {name} {self.meaning[name]!r}, not {value!r}"
                )


def _unit(costs: list[int] | None = None, **facts: Any) -> PruneUnit:
    """A unit as JSON has it."""
    return PruneUnit(**facts, costs=None if costs is None else tuple(costs))


def copy_policy(run: str | Path, folder: Path) -> None:
    """Keeps the policy that a run left under another folder, from where it can be read like that of a run."""
    with replacing(folder) as scratch:
        (scratch / "checkpoints").mkdir(parents=True)
        for name in (_TENSORS, _FACTS):
            shutil.copyfile(Path(run) / "checkpoints" / name, scratch / "checkpoints" / name)
