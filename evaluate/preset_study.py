"""Which settings of the search work: one changed at a time, on curves that stand in for the model.

    python evaluate/preset_study.py --seeds 20

The damage curves of the model are measured once and kept in --curves; then a search takes half a second, and what it
finds can be compared with the least damage there is. Printed is the share of the damage it could have removed from its
start that it did remove: 100 % is the optimum, 0 % the start (below 0 % only a start that is not among the finalists).
"""

from __future__ import annotations

import logging
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ffprune_env.budget.units import PruneUnit
from ffprune_env.cli.consoles import wide_console
from ffprune_env.cli.flags import read_flags
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.lm.models import load_model
from ffprune_env.pruning.backward import spread_windows
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.search.ppo import ppo
from ffprune_env.search.problem import Meter, Problem
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.fisher import CURVE_TOKENS, least_damage

console = wide_console()

#: What is tried beside the default, one change at a time.
CHANGES: tuple[dict[str, object], ...] = (
    {},
    {"n_steps": 2},
    {"n_steps": 8},
    {"n_steps": 16},
    {"n_steps": 32},
    {"learning_rate": 3e-4},
    {"learning_rate": 3e-3},
    {"n_epochs": 4},
    {"n_epochs": 20},
    {"log_std_init": -1.5},
    {"log_std_init": -2.0},
    {"log_std_init": -3.0},
    {"log_std_init": -3.5},
    {"normalize_advantage": False},
    {"ramp_sparsity": True},
    {"ramp_sparsity": True, "n_steps": 8},
    {"ramp_samples": False},
    {"n_steps": 2, "learning_rate": 3e-3},
    {"n_steps": 8, "log_std_init": -2.0},
    {"mapping": "greedy"},
    {"a_min": 0.05},
    {"a_min": 0.4},
)


@dataclass(frozen=True)
class Args:
    """Settings of the study; every field is a flag."""

    curves: Path = Path("runs/curves.npz")
    """file of the model's damage curves; made if there is none"""
    model: str = "smollm2-135m"
    """as for train/ppo.py, like the flags below whose help is missing"""
    text: str = "python-docs"
    dtype: str = "auto"
    device: str = "auto"
    sparsity: float = 0.3
    """target sparsity"""
    evaluations: int = 128
    """budget of every search, in measurements on all windows"""
    samples: int = 2
    """windows of a measurement, which the curves do not depend on"""
    inits: tuple[str, ...] = ("ffn-only",)
    """starts; fisher would be the optimum of its own curves, and from none a short search ends with ffn-only, which is
    always a finalist"""
    seeds: int = 20
    """searches per row"""


def main() -> int:
    """Runs the study; returns the exit code."""
    args = read_flags(Args, __doc__)
    logging.basicConfig(level=logging.ERROR)
    try:
        surrogate = read_curves(args)
        results = study(args, surrogate)
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", escape(str(error)))
        return 2
    table = Table(title=f"damage removed, σ = {args.sparsity:g}, {args.evaluations} evaluations, {args.seeds} seeds")
    table.add_column("changed")
    for init in args.inits:
        table.add_column(f"from {init}\nmean (lowest to highest)", justify="right")
    for i, change in enumerate(CHANGES):
        name = ", ".join(f"{key} {value}" for key, value in change.items()) or "default"
        table.add_row(name, *(cell(results[i, init]) for init in args.inits))
    console.print(table)
    return 0


def cell(shares: list[float]) -> str:
    """Mean and range of shares, in percent."""
    return f"{100 * statistics.mean(shares):.1f} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def study(args: Args, surrogate: SurrogateEvaluator) -> dict[tuple[int, str], list[float]]:
    """Share of the removable damage that every search removed, by index of the change and start."""
    results: dict[tuple[int, str], list[float]] = {}
    least = total(surrogate, least_damage(surrogate.curves, args.sparsity, surrogate.units, a_min=0.0).kept)
    rows = [(i, init) for i in range(len(CHANGES)) for init in args.inits]
    for i, init in track(rows, console=console):
        settings = replace(SearchSettings(init=init), **CHANGES[i])
        for seed in range(args.seeds):
            problem = Problem(
                None, None, Meter(surrogate, args.evaluations), args.sparsity, seed, settings.a_min, settings.a_max
            )
            start = problem.start() if init == "ffn-only" else np.full(len(surrogate.units), 1 - args.sparsity)
            before = total(surrogate, problem.allocate(start).kept)
            after = total(surrogate, ppo(problem, settings).kept)
            results.setdefault((i, init), []).append((before - after) / (before - least))
    return results


def total(surrogate: SurrogateEvaluator, kept: np.ndarray) -> float:
    """Damage of an allocation."""
    return surrogate.compare(kept, 1)[1]


def read_curves(args: Args) -> SurrogateEvaluator:
    """The model's damage curves, calibrated, from the file or measured and kept there."""
    if not args.curves.exists():
        model, tokenizer = load_model(args.model, args.dtype, args.device)
        evaluator = build_evaluator(
            model, tokenizer, args.text, seq_len=1024, curve_windows=16, criterion="surgeon", ridge=0.01
        )
        text = spread_windows(evaluator.texts["curves"], CURVE_TOKENS)
        found = damage_curves(evaluator.prunable, text, evaluator.calibration)
        args.curves.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"curve_{i}": curve for i, curve in enumerate(found)}
        names = [f"{unit.name} {unit.kind} {unit.layer} {unit.n_groups} {unit.n_params}" for unit in evaluator.units]
        with args.curves.open("wb") as file:
            np.savez(file, units=np.array(names), **arrays)
    with np.load(args.curves, allow_pickle=False) as saved:
        units = []
        for words in (line.split() for line in saved["units"].tolist()):
            units.append(PruneUnit(words[0], words[1], int(words[2]), int(words[3]), int(words[4])))
        return SurrogateEvaluator(units, [saved[f"curve_{i}"] for i in range(len(units))], max_samples=args.samples)


if __name__ == "__main__":
    sys.exit(main())
