"""Searches against each other on invented models, whose best allocation is known: who gets how far with how much.

    python evaluate/search_study.py --seeds 3
    python evaluate/search_study.py --seeds 3 --noise 0.11
    python evaluate/search_study.py --seeds 2 --sparsity 0.1 0.2 0.3 0.4 --methods policy ppo cma-es --start none

Printed is the share of the possible gain over `uniform`, 1 being the best allocation that there is. Every method has
the same budget of windows; several sparsities get equal parts of it, and `policy` all of it at once. How much noise
a window of a real model has is in docs/search.md.
"""

from __future__ import annotations

import logging
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track
from rich.table import Table

from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.even import uniform
from ffprune_env.cli.consoles import fail, start_logging, wide_console
from ffprune_env.cli.flag_groups import JsonFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import require_folder_of
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.replacing import replacing
from ffprune_env.methods.registry import METHODS, Method
from ffprune_env.run.strict_json import strict_json
from ffprune_env.search.problem import Problem, StartName
from ffprune_env.search.starts.fisher import least_damage

console = wide_console()
_FINAL_WINDOWS = 8


@dataclass(frozen=True)
class Args(JsonFlags):
    """Settings of the study; every field is a flag."""

    methods: tuple[str, ...] = ("random", "evolution", "evopress", "cma-es", "ppo")
    """searches, by the names of evaluate/compare.py"""
    sparsity: tuple[float, ...] = (0.3,)
    """fraction of the parameters to remove; of several the mean is printed"""
    budgets: tuple[int, ...] = (96, 256, 1024, 4096)
    """measurements on all windows, in all: shared out among the sparsities"""
    seeds: int = 3
    """invented models, each searched once"""
    first_seed: int = 0
    """of the first of them"""
    layers: int = 30
    """decoder layers of an invented model"""
    start: StartName = "ffn-only"
    """where searches begin: none (uniform) or ffn-only; own is where each says itself"""
    noise: float = 0.0
    """standard deviation of what a window says of ln PPL, in nats"""
    windows: int | None = None
    """windows per measurement; None takes 1 without noise and 2 with it"""

    def require_allowed(self) -> None:
        """Raises ValueError for what cannot be studied."""
        for name in self.methods:
            if name not in METHODS or not METHODS[name].searches:
                allowed = ", ".join(name for name, method in METHODS.items() if method.searches)
                raise ValueError(f"--methods takes searches, {allowed}, got {name!r}")
        for flag, value in (("--seeds", self.seeds), ("--layers", self.layers), ("--windows", self.n_windows)):
            require_in_range(flag, value, 1)
        for budget in self.budgets:
            require_in_range("--budgets", budget, 1)
        if not self.sparsity or not all(0 < x < 0.8 for x in self.sparsity):
            raise ValueError("--sparsity takes numbers between 0 and 0.8")

    @property
    def n_windows(self) -> int:
        """Windows per measurement."""
        return self.windows or (2 if self.noise else 1)


def main() -> int:
    """Runs the study; returns the exit code."""
    args = read_flags(Args, __doc__)
    start_logging(console, logging.ERROR)
    try:
        args.require_allowed()
        require_folder_of("--json", args.json)
        rows = [(name, budget) for budget in args.budgets for name in args.methods]
        shares = {row: share_of_gain(args, *row) for row in track(rows, console=console)}
        if args.json is not None:
            found = [{"method": name, "budget": budget, "shares": x} for (name, budget), x in shares.items()]
            with replacing(Path(args.json)) as scratch:
                scratch.write_text(strict_json({"shares": found}), encoding="utf-8")
    except (ValueError, OSError) as error:
        return fail(error, 2)
    noise = f"noise {args.noise:g} nats per window, {args.n_windows} windows" if args.noise else "no noise"
    at = ", ".join(f"{x:g}" for x in args.sparsity)
    table = Table(title=f"share of the possible gain, σ = {at}, from {args.start}, {args.seeds} seeds, {noise}")
    table.add_column("measurements")
    for name in args.methods:
        table.add_column(name, justify="right")
    for budget in args.budgets:
        means = {name: statistics.mean(shares[name, budget]) for name in args.methods}
        best = max(means.values())
        cells = (f"[bold]{x:.2f}[/bold]" if x == best else f"{x:.2f}" for x in means.values())
        table.add_row(str(budget), *cells)
    console.print(table)
    return 0


def share_of_gain(args: Args, name: str, budget: int) -> list[float]:
    """What a method gains over `uniform`, as a share of what the best allocation does: by seed, mean of the sparsities.

    Args:
        args: of the study.
        name: of the method.
        budget: measurements in all.
    """
    found = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        kept = answers(args, METHODS[name], budget, seed)
        model = invented(args, seed)
        gains = []
        for sparsity, groups in kept.items():
            least = model.damage(least_damage(model.curves, sparsity, model.units).kept)
            most = model.damage(uniform(sparsity, model.units).kept)
            gains.append((most - model.damage(groups)) / (most - least))
        found.append(statistics.mean(gains))
    return found


def answers(args: Args, method: Method, budget: int, seed: int) -> dict[float, IntArray]:
    """Groups that a method keeps, by sparsity."""
    if method.answer_all is not None:
        problem = Problem.of(
            invented(args, seed),
            max(args.sparsity),
            evaluations=budget,
            seed=seed,
            targets=args.sparsity,
            init=args.start,
        )
        return {at: found.allocation.kept for at, found in method.answer_all(problem).items()}
    kept = {}
    for sparsity in args.sparsity:
        each = budget // len(args.sparsity)
        problem = Problem.of(invented(args, seed), sparsity, evaluations=each, seed=seed, init=args.start)
        kept[sparsity] = method.answer(problem).kept
    return kept


def invented(args: Args, seed: int) -> SurrogateEvaluator:
    """An invented model, measured with noise if that was asked for."""
    return SurrogateEvaluator.synthetic(
        args.layers, seed=seed, noise=args.noise, max_samples=args.n_windows, max_final_samples=_FINAL_WINDOWS
    )


if __name__ == "__main__":
    sys.exit(main())
