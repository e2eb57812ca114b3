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
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from ffprune_env.budget.arrays import IntArray
from ffprune_env.cli.consoles import wide_console
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import require_folder_of, require_in_range
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.lm.batches import in_fitting_batches
from ffprune_env.lm.loss import window_losses
from ffprune_env.lm.models import load_model
from ffprune_env.pruning.units import member_columns

Seconds = dict[str, list[float]]


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
    seq_len: int = 1024
    """tokens per window"""
    samples: int = 2
    """windows per step"""
    batch_size: int | None = None
    """windows per forward pass; None chooses, as for train/ppo.py"""
    channels_per_group: int = 32
    """as for train/ppo.py"""
    sparsities: tuple[float, ...] = (0.0, 0.2, 0.5)
    """target sparsities of the steps"""
    calibrated: bool = True
    """time the steps with the calibrated reward too"""
    rounds: int = 7
    """times that everything is measured"""
    json: Path | None = None
    """file to write the seconds of every round to"""


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    args = read_flags(Args, __doc__)
    logging.basicConfig(level=logging.WARNING)
    try:
        require_in_range("--rounds", args.rounds, 1)
        require_folder_of("--json", args.json)
        model, tokenizer = load_model(args.model, args.dtype, args.device)
        stock = copy.deepcopy(model)
        evaluator = build_evaluator(
            model,
            tokenizer,
            args.text,
            seq_len=args.seq_len,
            n_samples=args.samples,
            batch_size=args.batch_size,
            channels_per_group=args.channels_per_group,
            ridge=0.01 if args.calibrated else None,
        )
        action = np.random.default_rng(0).normal(0, 0.05, len(evaluator.units)).astype(np.float32)
        env = PruneBanditEnv(evaluator)
        kept = {sparsity: kept_by(env, sparsity, action) for sparsity in args.sparsities}
        envs = {"step": env}
        if args.calibrated:
            envs["calibrated"] = PruneBanditEnv(
                LMEvaluator(evaluator.prunable, evaluator.windows, args.batch_size, evaluator.calibration, True)
            )
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", escape(str(error)))
        return 2
    masked = copy.deepcopy(stock)
    usual_batch = 1 if evaluator.prunable.device.type == "cpu" else args.batch_size
    seconds: dict[float, Seconds] = {}
    peaks: dict[float, dict[str, int]] = {}
    operations: dict[float, int] = {}
    for sparsity in args.sparsities:
        runs: dict[str, Callable[[], object]] = {
            name: (lambda e=e, s=sparsity: step(e, s, action)) for name, e in envs.items()
        }
        runs["usual"] = lambda k=kept[sparsity]: usual(stock, masked, evaluator, k, usual_batch)
        alone, operations[sparsity] = forward_alone(evaluator, kept[sparsity], args.batch_size)
        runs |= alone
        seconds[sparsity] = in_turns(runs, args.rounds, evaluator.prunable.device)
        peaks[sparsity] = {name: peak_memory(runs[name], evaluator.prunable.device) for name in ("step", "usual")}
        peaks[sparsity]["usual"] += sum(x.numel() * x.element_size() for x in masked.parameters())
    tokens, dtype = args.samples * evaluator.windows.shape[1], str(evaluator.prunable.model.dtype)
    wide_console().print(table(seconds, peaks, operations, tokens, dtype))
    if args.json is not None:
        args.json.write_text(json.dumps({"seconds": seconds, "peak_bytes": peaks}, indent=2) + "\n", encoding="utf-8")
    return 0


def kept_by(env: PruneBanditEnv, sparsity: float, action: np.ndarray) -> IntArray:
    """What a step keeps."""
    env.set_task(sparsity=sparsity)
    env.reset()
    return env.would_measure(action)[0]


def step(env: PruneBanditEnv, sparsity: float, action: np.ndarray) -> None:
    """One episode, measured even if its allocation was measured before."""
    env.evaluator.forget()
    env.set_task(sparsity=sparsity)
    env.reset()
    env.step(action)


def forward_alone(
    evaluator: LMEvaluator, kept: IntArray, batch_size: int | None
) -> tuple[dict[str, Callable[[], object]], int]:
    """The forward pass and loss of a model that is pruned already, its matrix products, and the operations in these.

    The former says itself how long it took: pruning and what undoes it is not part of it.
    """
    prunable, windows = evaluator.prunable, evaluator.windows
    linears: list[tuple[int, torch.Tensor]] = []
    attentions: list[tuple[int, int, int]] = []  # batch · heads, T, D
    with prunable.pruned(kept) as model, ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                hook = module.register_forward_hook(
                    lambda m, i, o: linears.append((i[0].numel() // i[0].shape[-1], m.weight.detach()))
                )
                stack.callback(hook.remove)
        for layout in prunable.layouts:
            if layout.unit.kind == "attention":
                hook = layout.inputs[0].register_forward_hook(
                    lambda m, i, o, d=layout.width: attentions.append((o.numel() // (o.shape[1] * d), o.shape[1], d))
                )
                stack.callback(hook.remove)
        window_losses(model, windows, batch_size)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=prunable.device).to(prunable.model.dtype)

    inputs = {size: random(*size) for size in {(rows, weight.shape[1]) for rows, weight in linears}}
    # A token attends to half of the others on average: half of the keys make as many operations as a causal pass needs.
    operands = {
        (n, t, d): (random(n, t, d), random(n, d, t // 2), random(n, t, t // 2), random(n, t // 2, d))
        for n, t, d in set(attentions)
    }

    def forward() -> float:
        with prunable.pruned(kept) as model:
            started = time.perf_counter()
            window_losses(model, windows, batch_size)
            synchronize(prunable.device)
            return time.perf_counter() - started

    @torch.inference_mode()
    def linear() -> None:
        for rows, weight in linears:
            F.linear(inputs[rows, weight.shape[1]], weight)

    @torch.inference_mode()
    def products() -> None:
        linear()
        for shape in attentions:
            query, key, weights, value = operands[shape]
            torch.bmm(query, key)
            torch.bmm(weights, value)

    size = sum(2 * rows * weight.numel() for rows, weight in linears) + sum(
        4 * n * t * (t // 2) * d for n, t, d in attentions
    )
    return {"forward": forward, "products": products, "linear": linear}, size


@torch.inference_mode()
def usual(stock: nn.Module, masked: nn.Module, evaluator: LMEvaluator, kept: IntArray, batch_size: int | None) -> None:
    """The perplexity as it is usually measured: weights copied and masked with zeros, all logits in float32."""
    prunable = evaluator.prunable
    for parameter, dense in zip(masked.parameters(), stock.parameters(), strict=True):
        parameter.copy_(dense)
    names = {id(module): name for name, module in prunable.model.named_modules()}
    for layout, groups in zip(prunable.layouts, prunable.kept_groups(kept), strict=True):
        columns = member_columns(layout, torch.from_numpy(groups))
        removed = torch.ones(layout.output.in_features, dtype=torch.bool)
        removed[columns] = False
        removed = removed.to(layout.output.weight.device)
        for linear in layout.inputs:
            copied = masked.get_submodule(names[id(linear)])
            copied.weight[removed] = 0
            if copied.bias is not None:
                copied.bias[removed] = 0
        masked.get_submodule(names[id(layout.output)]).weight[:, removed] = 0
    masked_perplexity(masked, evaluator.windows, batch_size)


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


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that a run needs beyond what is held before it; 0 where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, StopIteration):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls to what is held now
        before = psutil.Process().memory_info().rss
        run()
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024 - before
    return 0


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


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
