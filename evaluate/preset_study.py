"""Which settings of the search work: one changed at a time, on curves that stand in for the model.

    python evaluate/preset_study.py --seeds 20

The damage curves of the model are measured once and kept in --curves; then a search takes half a second, and what it
finds can be compared with the least damage there is. Printed is the share of the damage it could have removed from its
start that it did remove: 100 % is the optimum, 0 % the start (below 0 % only a start that is not among the finalists).
What ends it early, such as Ctrl-C, leaves a table of what there is.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from rich.table import Table

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.least_damage import least_damage
from ffprune_env.budget.units import PruneUnit
from ffprune_env.cli.consoles import start_logging, wide_console
from ffprune_env.cli.ending import Ending
from ffprune_env.cli.flag_groups import NoiseFlags, RepeatFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import ModelFlags
from ffprune_env.cli.text_flags import OneTextFlags
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.lm.identity import (
    Identity,
    identity_of_model,
    identity_of_texts,
    identity_of_versions,
    require_same,
    text_names,
)
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.replacing import replacing
from ffprune_env.methods.ppo import ppo
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.run.strict_json import strict_json
from ffprune_env.search.problem import Problem
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.fisher import CURVE_TOKENS
from ffprune_env.search.target_settings import TargetSettings
from ffprune_env.texts.spread import spread_windows
from ffprune_env.texts.window_plan import load_planned_windows

console = wide_console()

#: Shares of the removable damage, a number per seed, by index of the change and start.
Shares = dict[tuple[int, str], list[float]]
#: What is tried beside the default, one change at a time.
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"rollout": 4},
    {"rollout": 16},
    {"learning_rate": 0.02},
    {"learning_rate": 0.1},
    {"n_epochs": 2},
    {"n_epochs": 4},
    {"log_std_init": -1.5},
    {"log_std_init": -3.0},
    {"normalize_advantage": False},
    {"ramp_sparsity": True},
    {"ramp_windows": False},
    {"mapping": "greedy"},
    {"a_min": 0.05},
    {"a_min": 0.4},
)


@dataclass(frozen=True)
class Args(ModelFlags, OneTextFlags, EvaluatorSettings, TargetSettings, RepeatFlags, NoiseFlags):
    """Settings of the study; every field is a flag."""

    curves: Path = Path("runs/curves.npz")
    """file of the model's damage curves; made, by the flags of model, text and calibration, if there is none"""
    inits: tuple[str, ...] = ("ffn-only",)
    """starts; fisher would be the optimum of its own curves, and from none a short search ends with ffn-only, which is
    always a finalist"""


DEFAULTS = {"sparsity": 0.3, "evaluations": 128, "seeds": 20}


def main() -> int:
    """Runs the study; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console, logging.ERROR)
    shares: Shares = {}
    ending = Ending(shares)
    with ending:
        require_in_range("--seeds", args.seeds, 1)
        require_in_range("--noise", args.noise, 0)
        args.require_allowed()
        if len(args.targets) != 1:
            raise ValueError(f"--sparsity takes one number here, got {len(args.targets)}")
        for row, share in study(args):
            shares.setdefault(row, []).append(share)
    if shares:
        console.print(table(args, shares))
    return ending.code


def table(args: Args, shares: Shares) -> Table:
    """A row per change, with gaps for what was not measured.

    Args:
        args: of the study.
        shares: what was measured.
    """
    made = f"{args.evaluations_each} evaluations, {args.seeds} seeds, noise {args.noise:g}"
    report = Table(title=f"damage removed, {args.model}, σ = {args.target:g}, {made}")
    report.add_column("changed")
    for init in args.inits:
        report.add_column(f"from {init}\nmean (lowest to highest)", justify="right")
    for i, change in enumerate(CHANGES):
        name = ", ".join(f"{key} {value}" for key, value in change.items()) or "default"
        report.add_row(name, *(cell(shares.get((i, init), []), args.seeds) for init in args.inits))
    return report


def cell(shares: list[float], seeds: int) -> str:
    """Mean and range of shares, in percent, and of how many seeds where those are fewer than were asked for.

    Args:
        shares: of the seeds that were measured.
        seeds: that were asked for.
    """
    if not shares:
        return ""
    few = "" if len(shares) >= seeds else f", {len(shares)} of {seeds} seeds"
    return f"{100 * statistics.mean(shares):.1f} ({100 * min(shares):.1f} to {100 * max(shares):.1f}{few})"


def study(args: Args) -> Iterator[tuple[tuple[int, str], float]]:
    """Search after search: index of the change and start, and the share of the removable damage that it removed."""
    curves = curves_of(args)
    surrogate = surrogate_of(args, curves)
    least = total(surrogate, least_damage(surrogate.curves, args.target, surrogate.units, a_min=0.0).kept)
    rows = dict.fromkeys((i, init) for i in range(len(CHANGES)) for init in args.inits)
    for i, init in track(list(rows), console=console):
        settings = replace(SearchSettings(init=init), **CHANGES[i])
        for seed in range(args.seeds):
            problem = Problem.of(
                surrogate_of(args, curves, seed),
                args.target,
                evaluations=args.evaluations_each,
                seed=seed,
                a_min=settings.lowest,
                a_max=settings.a_max,
            )
            start = problem.start() if init == "ffn-only" else np.full(len(surrogate.units), 1 - args.target)
            before = total(surrogate, problem.allocate(start).kept)
            after = total(surrogate, ppo(problem, settings).kept)
            yield (i, init), (before - after) / (before - least)


def total(surrogate: SurrogateEvaluator, kept: IntArray) -> float:
    """Damage of an allocation."""
    return surrogate.damage(kept)


@dataclass(frozen=True, eq=False)
class Curves:
    """The damage curves of a model.

    Attributes:
        units: its N units.
        curves: of each, [n_groups + 1] nats per token.
    """

    units: list[PruneUnit]
    curves: list[FloatArray]


def surrogate_of(args: Args, curves: Curves, seed: int = 0) -> SurrogateEvaluator:
    """What stands in for the model; ``seed`` is of windows."""
    pool = args.windows_wanted["pool"] if args.noise else 0  # where windows differ a search draws them anew
    windows = {"max_samples": args.search_windows, "max_final_samples": args.final_windows, "pool": pool}
    return SurrogateEvaluator(curves.units, curves.curves, **windows, noise=args.noise, seed=seed)


def curves_of(args: Args) -> Curves:
    """The model's damage curves, calibrated: from the file, or measured and kept there.

    Raises:
        ValueError: the file holds curves of another model, text or setting, or made by another version.
    """
    if args.curves.exists():
        require_same_settings(args)
    model, tokenizer = args.load()
    texts = load_planned_windows(model, tokenizer, args.text, args).texts
    # A name says where a model or a text was, and not what lies there now.
    identity = {**identity_of_versions(), **identity_of_model(model), **identity_of_texts(texts)}
    if not args.curves.exists():
        measure_curves(args, build_evaluator(model, tokenizer, args.text, args, texts=texts), identity)
    with np.load(args.curves, allow_pickle=False) as saved:
        if "identity" not in saved:
            raise ValueError(f"{args.curves} does not say what its curves were measured with: give another --curves")
        begun = json.loads(str(saved["identity"]))
        names = text_names(args.text, None, texts, args.calibration_text)
        require_same(begun, identity, f"{args.curves} was made", "give another --curves", args.model, names)
        units = []
        for words in (line.split() for line in saved["units"].tolist()):
            units.append(PruneUnit(words[0], words[1], int(words[2]), int(words[3]), int(words[4])))
        return Curves(units, [saved[f"curve_{i}"] for i in range(len(units))])


def measure_curves(args: Args, evaluator: LMEvaluator, identity: Identity) -> None:
    """Measures the damage curves of a model and writes them, with what they depend on."""
    text = spread_windows(evaluator.texts["curves"], CURVE_TOKENS)
    found = damage_curves(evaluator.prunable, text, evaluator.calibration)
    args.curves.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"curve_{i}": curve for i, curve in enumerate(found)}
    names = [f"{unit.name} {unit.kind} {unit.layer} {unit.n_groups} {unit.n_params}" for unit in evaluator.units]
    arrays |= {"about": np.array(described(args)), "identity": np.array(json.dumps(dict(identity)))}
    with replacing(args.curves) as scratch, scratch.open("wb") as file:
        np.savez(file, units=np.array(names), **arrays)


def described(args: Args) -> str:
    """The names and settings that curves depend on, as they are kept beside them."""
    settings = {x.name: getattr(args, x.name) for x in fields(EvaluatorSettings)}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    return strict_json({"model": args.model, "text": args.text, **plain})


def require_same_settings(args: Args) -> None:
    """Raises ValueError, before a model is loaded, if the file is of other names or settings."""
    with np.load(args.curves, allow_pickle=False) as saved:
        if "about" not in saved or str(saved["about"]) != described(args):
            raise ValueError(f"{args.curves} holds curves of another model, text or setting: give another --curves")


if __name__ == "__main__":
    sys.exit(main())
