"""What an environment step costs, beside its forward pass, its matrix products, and the same step done the usual way.

    python evaluate/bench.py --sparsities 0 0.2 0.5

At every sparsity one allocation is measured in turns by
  step        PruneBanditEnv.step: scores to budget, views, loss, reward
  calibrated  the same with the surviving weights re-fitted
  forward     the forward pass and the loss of the model that is already pruned, and nothing else
  products    the matrix products of that pass, of the same shapes and dtype, on data of their own: the roofline
  linear      those of the linear layers alone, without attention's
  usual       the weights of the model as it was loaded are copied and the copy masked with zeros, and all its logits
              are computed in float32; on a CPU window by window, which is faster for so many logits

All are taken in one run, so that a machine whose speed drifts slows them alike; printed are medians, and the median of
the ratios taken round by round.
"""

from __future__ import annotations

import copy
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

from ffprune_env.budget.arrays import IntArray
from ffprune_env.cli.consoles import fail, start_logging, wide_console
from ffprune_env.cli.flag_groups import JsonFlags, RoundFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import ModelFlags
from ffprune_env.cli.text_flags import OneTextFlags
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.batches import in_fitting_batches
from ffprune_env.lm.loss import window_losses
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.timing import most_memory, synchronize
from ffprune_env.pruning.roofline import Products, record_products
from ffprune_env.pruning.unit_layout import member_columns, spelled_out

Seconds = dict[str, list[float]]
console = wide_console()


@dataclass(frozen=True)
class Args(ModelFlags, OneTextFlags, EvaluatorSettings, RoundFlags, JsonFlags):
    """Settings of the benchmark; every field is a flag. With --reward-model cut nothing calibrated is timed."""

    sparsities: tuple[float, ...] = (0.0, 0.2, 0.5)
    """target sparsities of the steps"""


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    args = read_flags(Args, __doc__)
    start_logging(console, logging.WARNING)
    try:
        require_in_range("--rounds", args.rounds, 1)
        args.require_allowed()
        args.require_folder()
        model, tokenizer = args.load()
        stock = copy.deepcopy(model)
        evaluator = build_evaluator(model, tokenizer, args.text, replace(args, reward_model="cut"))
        action = np.random.default_rng(0).normal(0, 0.05, len(evaluator.units)).astype(np.float32)
        env = PruneBanditEnv(evaluator)
        kept = {sparsity: kept_by(env, sparsity, action) for sparsity in args.sparsities}
        envs = {"step": env}
        if args.reward_model == "calibrated":
            envs["calibrated"] = PruneBanditEnv(
                LMEvaluator(evaluator.prunable, evaluator.windows, args.batch_size, evaluator.calibration, True)
            )
    except (ValueError, OSError) as error:
        return fail(error, 2)
    device = evaluator.prunable.device
    masked = copy.deepcopy(stock)
    usual_batch = 1 if device.type == "cpu" else args.batch_size
    seconds: dict[float, Seconds] = {}
    peaks: dict[float, dict[str, int]] = {}
    products: dict[float, Products] = {}
    for sparsity in args.sparsities:
        now = kept[sparsity]
        products[sparsity] = record_products(evaluator.prunable, evaluator.windows, now, args.batch_size)
        runs: dict[str, Callable[[], object]] = {
            name: partial(step, env, sparsity, action) for name, env in envs.items()
        }
        runs["usual"] = partial(usual, stock, masked, evaluator, now, usual_batch)
        runs["forward"] = partial(forward, evaluator, now, args.batch_size)
        runs |= {"products": products[sparsity].run, "linear": products[sparsity].run_linear}
        seconds[sparsity] = in_turns(runs, args.rounds, device)
        peaks[sparsity] = {name: most_memory(runs[name], device) for name in ("step", "usual")}
        peaks[sparsity]["usual"] += sum(x.numel() * x.element_size() for x in masked.parameters())
    operations = {sparsity: found.operations for sparsity, found in products.items()}
    tokens, dtype = evaluator.windows.numel(), str(evaluator.prunable.model.dtype)
    console.print(table(seconds, peaks, operations, tokens, dtype))
    try:
        args.write_json({"seconds": seconds, "peak_bytes": peaks})
    except OSError as error:
        return fail(error, 2)
    return 0


def kept_by(env: PruneBanditEnv, sparsity: float, action: np.ndarray) -> IntArray:
    """What a step keeps."""
    env.set_task(sparsity=sparsity)
    env.reset()
    return env.would_measure(action)[0]


def step(env: PruneBanditEnv, sparsity: float, action: np.ndarray) -> None:
    """One episode, measured even if its allocation was measured before."""
    assert isinstance(env.evaluator, LMEvaluator)
    env.evaluator.forget()
    env.set_task(sparsity=sparsity)
    env.reset()
    env.step(action)


def forward(evaluator: LMEvaluator, kept: IntArray, batch_size: int | None) -> float:
    """Seconds of the forward pass and loss of a model that is pruned already: pruning it and back is not in them."""
    prunable = evaluator.prunable
    with prunable.pruned(kept) as model:
        started = time.perf_counter()
        window_losses(model, evaluator.windows, batch_size)
        synchronize(prunable.device)
        return time.perf_counter() - started


@torch.inference_mode()
def usual(stock: nn.Module, masked: nn.Module, evaluator: LMEvaluator, kept: IntArray, batch_size: int | None) -> None:
    """The perplexity as it is usually measured: weights copied and masked with zeros, all logits in float32."""
    prunable = evaluator.prunable
    for parameter, dense in zip(masked.parameters(), stock.parameters(), strict=True):
        parameter.copy_(dense)
    names = {id(module): name for name, module in prunable.model.named_modules()}
    for layout, members in zip(prunable.layouts, prunable.kept_groups(kept), strict=True):
        gone = torch.from_numpy(np.setdiff1d(np.arange(layout.n_members), members)).to(layout.device)
        inputs = layout.inputs if layout.fused is None else (layout.fused.linear,)
        for linear, width in zip(inputs, layout.row_widths, strict=False):
            copied = linear_of(masked, names[id(linear)])
            removed = torch.zeros(layout.n_members * width, dtype=torch.bool, device=gone.device)
            removed[spelled_out(gone, width)] = True
            rows = removed.repeat(copied.out_features // len(removed))  # two projections may be one matrix
            copied.weight[rows] = 0
            if copied.bias is not None:
                copied.bias[rows] = 0
        linear_of(masked, names[id(layout.output)]).weight[:, member_columns(layout, gone)] = 0
    masked_perplexity(masked, evaluator.windows, batch_size)


def linear_of(model: nn.Module, name: str) -> nn.Linear:
    """A linear layer of a model, by its name."""
    found = model.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


@torch.inference_mode()
def masked_perplexity(model: nn.Module, windows: torch.Tensor, batch_size: int | None) -> float:
    """Perplexity from all logits at once, in float32."""

    def lose(size: int) -> list[torch.Tensor]:
        losses = []
        for batch in torch.split(windows.to(next(model.parameters()).device), size):
            logits = model(batch).logits.float()[:, :-1]
            losses.append(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
        return losses

    return float(torch.cat(in_fitting_batches(model, windows, batch_size, lose)).mean().exp())


def in_turns(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> Seconds:
    """Seconds of everything in every round, after a round that is not counted."""
    seconds: Seconds = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            synchronize(device)
            started = time.perf_counter()
            own = run()
            synchronize(device)
            if i:
                seconds[name].append(own if isinstance(own, float) else time.perf_counter() - started)
    return seconds


def table(
    seconds: dict[float, Seconds],
    peaks: dict[float, dict[str, int]],
    operations: dict[float, int],
    tokens: int,
    dtype: str,
) -> Table:
    """Medians, and medians of ratios taken round by round."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    def ratio(one: list[float], other: list[float]) -> float:
        return median([a / b for a, b in zip(one, other, strict=True)])

    rounds = len(next(iter(seconds.values()))["step"])
    title = f"{tokens} tokens per step, {dtype}, {torch.get_num_threads()} threads, medians of {rounds}"
    report = Table(title=title)
    report.add_column("")
    for sparsity in seconds:
        report.add_column(f"σ = {sparsity:g}", justify="right")
    rows: dict[str, Callable[[Seconds], str]] = {
        "env.step, seconds": lambda x: f"{median(x['step']):.3f}",
        "env.step, tokens/s": lambda x: f"{tokens / median(x['step']):.0f}",
        "env.step / forward and loss": lambda x: f"{ratio(x['step'], x['forward']):.3f}",
        "outside the forward pass, ms": lambda x: (
            f"{1000 * median([a - b for a, b in zip(x['step'], x['forward'], strict=True)]):.0f}"
        ),
        "of the roofline": lambda x: f"{100 * ratio(x['products'], x['step']):.0f} %",
        "of the roofline, linear layers alone": lambda x: f"{100 * ratio(x['linear'], x['step']):.0f} %",
        "usual way / env.step": lambda x: f"{ratio(x['usual'], x['step']):.2f}",
    }
    if "calibrated" in next(iter(seconds.values())):
        rows["calibrated / env.step"] = lambda x: f"{ratio(x['calibrated'], x['step']):.3f}"
    for name, cell in rows.items():
        report.add_row(name, *(cell(x) for x in seconds.values()))
    rates = [size / median(x["products"]) / 1e12 for size, x in zip(operations.values(), seconds.values(), strict=True)]
    report.add_row("roofline, TFLOP/s", *(f"{rate:.3g}" for rate in rates))
    for name, key in (("peak memory, MiB", "step"), ("peak memory of the usual way, MiB", "usual")):
        report.add_row(name, *(f"{x[key] / 2**20:.0f}" for x in peaks.values()))
    return report


if __name__ == "__main__":
    sys.exit(main())
