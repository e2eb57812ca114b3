"""Times environment steps, plain and calibrated, at several sparsities, beside the dense model's forward pass and loss.

    python evaluate/bench.py --sparsities 0 0.2 0.5

All are taken in one run, in turns, so that a machine whose speed drifts slows them alike; medians are printed, with the
median of the ratios taken round by round.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluator import LMEvaluator, load_evaluator
from ffprune_env.loss import perplexity

CALIBRATED = ", calibrated"


@dataclass(frozen=True)
class Args:
    """Settings of the benchmark; every field is a flag."""

    model: str = "smollm2-135m"
    """as for train/ppo.py"""
    text: str = "python-docs"
    """as for train/ppo.py"""
    dtype: str = "auto"
    """as for train/ppo.py"""
    device: str = "auto"
    """as for train/ppo.py"""
    seq_len: int = 256
    """tokens per window"""
    samples: int = 4
    """windows per step"""
    sparsities: tuple[float, ...] = (0.0, 0.2, 0.5)
    """target sparsities of the steps"""
    calibrated: bool = True
    """time the steps with the calibrated reward too"""
    rounds: int = 9
    """times that everything is measured"""
    json: Path | None = None
    """file to write the seconds of every round to"""


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    args = tyro.cli(Args, description=__doc__)
    logging.basicConfig(level=logging.WARNING)
    try:
        evaluator = load_evaluator(
            args.model,
            args.text,
            dtype=args.dtype,
            device=args.device,
            seq_len=args.seq_len,
            n_samples=args.samples,
            ridge=0.01 if args.calibrated else None,
        )
        envs = {"": PruneBanditEnv(evaluator)}
        if args.calibrated:
            calibrated = LMEvaluator(evaluator.prunable, evaluator.windows, 1, evaluator.calibration, calibrated=True)
            envs[CALIBRATED] = PruneBanditEnv(calibrated)
        for sparsity in args.sparsities:
            envs[""].set_task(sparsity=sparsity)
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", escape(str(error)))
        return 2
    contenders = {"dense forward and loss": lambda: dense_forward(evaluator)}
    for sparsity in args.sparsities:
        for suffix, env in envs.items():
            contenders[f"env.step at σ = {sparsity:g}{suffix}"] = lambda s=sparsity, e=env: step(e, s)
    seconds = in_turns(contenders, args.rounds, evaluator.prunable.device)
    Console().print(table(seconds, args.samples * args.seq_len))
    if args.json is not None:
        args.json.write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")
    return 0


def dense_forward(evaluator: LMEvaluator) -> None:
    """What a measurement costs without pruning, mapping or environment."""
    perplexity(evaluator.prunable.model, evaluator.windows)


def step(env: PruneBanditEnv, sparsity: float) -> None:
    """One episode, measured even if its allocation was measured before."""
    env.evaluator.forget()
    env.set_task(sparsity=sparsity)
    env.reset()
    env.step(env.np_random.normal(0, 0.05, env.action_space.shape))


def in_turns(contenders: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every contender in every round, after a round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            _synchronize(device)
            started = time.perf_counter()
            run()
            _synchronize(device)
            if i:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def table(seconds: dict[str, list[float]], tokens: int) -> Table:
    """Medians, and the median ratio to the first contender."""
    report = Table(
        title=f"{tokens} tokens, {torch.get_num_threads()} threads, medians of {len(next(iter(seconds.values())))}"
    )
    for column in ("", "seconds", "tokens/s", "of dense", "of plain step"):
        report.add_column(column, justify="right" if column else "left")
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        median = statistics.median(values)
        of_dense = f"{statistics.median(np.divide(values, first)):.2f}"
        plain = seconds[name.removesuffix(CALIBRATED)]
        of_plain = f"{statistics.median(np.divide(values, plain)):.2f}" if name.endswith(CALIBRATED) else ""
        report.add_row(name, f"{median:.3f}", f"{tokens / median:.0f}", of_dense, of_plain)
    return report


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
