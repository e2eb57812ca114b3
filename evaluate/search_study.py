"""Searches against each other on invented models, whose best allocation is known: who gets how far with how much.

    python evaluate/search_study.py --seeds 3
    python evaluate/search_study.py --seeds 3 --noise 1.5
    python evaluate/search_study.py --seeds 2 --sparsity 0.1 0.2 0.3 0.4 --methods policy ppo cma-es --start none

Printed is the share of the possible gain over `uniform`, 1 being the best allocation that there is. Every method has
the same budget of windows; several sparsities get equal parts of it, and `policy` all of it at once. With --noise
windows differ, and there are as many further ones as a search on a model draws from: methods that draw windows anew do
so here, too, and all others compare on the same few. How much windows of a real model differ is in docs/search.md.
What ends it early, such as Ctrl-C, leaves a table of what there is.
"""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.progress import track
from rich.table import Table

from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.even import uniform
from ffprune_env.budget.least_damage import least_damage
from ffprune_env.cli.consoles import start_logging, wide_console
from ffprune_env.cli.ending import Ending
from ffprune_env.cli.flag_groups import ContestFlags, JsonFlags, NoiseFlags, RepeatFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.evaluators.surrogate import SurrogateEvaluator
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.methods.registry import METHODS, Method
from ffprune_env.search.problem import Problem
from ffprune_env.search.target_settings import SparsitySettings
from ffprune_env.texts.window_settings import WindowSettings

console = wide_console()
_FINAL_WINDOWS = 8
#: Shares of the possible gain, a number per seed, by method and budget.
Shares = dict[tuple[str, int], list[float]]


@dataclass(frozen=True)
class Args(SparsitySettings, RepeatFlags, ContestFlags, NoiseFlags, JsonFlags):
    """Settings of the study; every field is a flag, most of them of the groups that scripts share."""

    budgets: tuple[int, ...] = (96, 256, 1024, 4096)
    """measurements on all windows, in all: shared out among the sparsities"""
    first_seed: int = 0
    """of the first invented model; there is one for every seed"""
    layers: int = 30
    """decoder layers of an invented model"""
    each_on: int | None = None
    """windows per measurement; None takes 1 without noise and 2 with it"""

    def require_allowed(self) -> None:
        """Raises ValueError for what cannot be studied."""
        searches = [name for name, method in METHODS.items() if method.searches]
        for name in self.methods:
            if name not in searches:
                raise ValueError(f"--methods takes searches, {', '.join(searches)}, got {name!r}")
        for flag, value in (("--seeds", self.seeds), ("--layers", self.layers), ("--each-on", self.n_windows)):
            require_in_range(flag, value, 1)
        require_in_range("--noise", self.noise, 0)
        for budget in self.budgets:
            require_in_range("--budgets", budget, 1)
        if not self.targets or not all(0 < x < 0.8 for x in self.targets):
            raise ValueError("--sparsity takes numbers between 0 and 0.8 here")

    @property
    def studied(self) -> tuple[str, ...]:
        """The methods: those asked for, or all searches; of one sparsity `policy` is no other than `ppo`."""
        every = (name for name, method in METHODS.items() if method.searches)
        return self.methods or tuple(name for name in every if name != "policy" or len(self.targets) > 1)

    @property
    def n_windows(self) -> int:
        """Windows per measurement."""
        return self.each_on or (2 if self.noise else 1)


DEFAULTS = {"sparsity": 0.3, "seeds": 3, "start": "ffn-only"}


def main() -> int:
    """Runs the study; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console, logging.ERROR)
    shares: Shares = {}
    ending = Ending(shares)
    with ending:
        args.require_allowed()
        args.require_folder()
        rows = dict.fromkeys((name, budget) for budget in args.budgets for name in args.studied)
        for name, budget in track(list(rows), console=console):
            for share in shares_of_gain(args, name, budget):
                shares.setdefault((name, budget), []).append(share)
    if shares:
        console.print(table(args, shares))
        with ending:
            found = [{"method": name, "budget": n, "shares": x} for (name, n), x in shares.items()]
            args.write_json({"shares": found})
    return ending.code


def table(args: Args, shares: Shares) -> Table:
    """A row per budget, with gaps for what was not measured; the best mean of all seeds is bold.

    Args:
        args: of the study.
        shares: what was measured.
    """
    noise = f"noise {args.noise:g} nats at half, {args.n_windows} windows" if args.noise else "no noise"
    at = ", ".join(f"{x:g}" for x in args.targets)
    report = Table(title=f"share of the possible gain, σ = {at}, from {args.start}, {args.seeds} seeds, {noise}")
    report.add_column("measurements")
    for name in args.studied:
        report.add_column(name, justify="right")
    for budget in args.budgets:
        found = {name: shares[name, budget] for name in args.studied if (name, budget) in shares}
        if found:
            shown = cells(found, args.seeds)
            report.add_row(str(budget), *(shown.get(name, "") for name in args.studied))
    return report


def cells(found: Mapping[str, list[float]], seeds: int) -> dict[str, str]:
    """Means by method, the best of them bold; one of fewer seeds than were asked for says so, and is not compared.

    Args:
        found: shares by method, of one budget.
        seeds: that were asked for.
    """
    best = max((statistics.mean(x) for x in found.values() if len(x) == seeds), default=None)
    shown = {}
    for name, x in found.items():
        mean = statistics.mean(x)
        if len(x) < seeds:
            shown[name] = f"{mean:.2f} ({len(x)} of {seeds})"
        else:
            shown[name] = f"[bold]{mean:.2f}[/bold]" if mean == best else f"{mean:.2f}"
    return shown


def shares_of_gain(args: Args, name: str, budget: int) -> Iterator[float]:
    """What a method gains over `uniform`, as a share of what the best allocation does: seed by seed, over sparsities.

    Args:
        args: of the study.
        name: of the method.
        budget: measurements in all.
    """
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        kept = answers(args, METHODS[name], budget, seed)
        model = invented(args, seed)
        gains = []
        for sparsity, groups in kept.items():
            least = model.damage(least_damage(model.curves, sparsity, model.units).kept)
            most = model.damage(uniform(sparsity, model.units).kept)
            gains.append((most - model.damage(groups)) / (most - least))
        yield statistics.mean(gains)


def answers(args: Args, method: Method, budget: int, seed: int) -> dict[float, IntArray]:
    """Groups that a method keeps, by sparsity."""
    if method.answer_all is not None:
        problem = Problem.of(
            invented(args, seed),
            max(args.targets),
            evaluations=budget,
            seed=seed,
            targets=args.targets,
            init=args.start,
        )
        return {at: found.allocation.kept for at, found in method.answer_all(problem).items()}
    kept = {}
    for sparsity in args.targets:
        each = budget // len(args.targets)
        problem = Problem.of(invented(args, seed), sparsity, evaluations=each, seed=seed, init=args.start)
        kept[sparsity] = method.answer(problem).kept
    return kept


def invented(args: Args, seed: int) -> SurrogateEvaluator:
    """An invented model, measured with noise if that was asked for: then with windows to draw from."""
    pool = WindowSettings(search_windows=args.n_windows).windows_wanted["pool"] if args.noise else 0
    windows = {"max_samples": args.n_windows, "max_final_samples": _FINAL_WINDOWS, "pool": pool}
    return SurrogateEvaluator.synthetic(args.layers, seed=seed, noise=args.noise, **windows)


if __name__ == "__main__":
    sys.exit(main())
