"""Compares a pruned model with the dense one it was made from: prefill, decode, peak memory and bytes on disk.

    python evaluate/latency.py runs/<name>/model --dense smollm2-135m

Each model lives in a process of its own; they take turns, so that a machine whose speed drifts slows both alike.
Medians are printed, with the median of the ratios taken round by round.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
from rich.table import Table

import ffprune_env as ff
from ffprune_env.cli.consoles import fail, start_logging, wide_console
from ffprune_env.cli.flag_groups import DeviceFlags, PrunedFlags, RoundFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.lm.devices import pick_device
from ffprune_env.lm.models import context_length
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.timing import high_water_mark, synchronize
from ffprune_env.modeling.auto_classes import pruned_model_class
from ffprune_env.modeling.config_names import PREFIX

# What pruning leaves as it is.
_SAME = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")
SHORT = 16  # tokens of the prompt that a decode follows


@dataclass(frozen=True, kw_only=True)
class Args(PrunedFlags, DeviceFlags, RoundFlags):
    """Settings of the comparison; every field is a flag."""

    dense: str = "smollm2-135m"
    """the dense model, as --model of train/ppo.py; it is run in the dtype of the pruned one"""
    prompt: int = 512
    """tokens of a prefill"""
    new_tokens: int = 64
    """tokens of a decode, after a prompt of 16"""


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__)
    console = wide_console()
    start_logging(console, logging.WARNING)
    try:
        for flag, value in (("--prompt", args.prompt), ("--new-tokens", args.new_tokens), ("--rounds", args.rounds)):
            require_in_range(flag, value, 1)
        device = str(pick_device(args.device))
        pruned = ff.load_pruned(args.pruned, device="cpu")
        if max(args.prompt, args.new_tokens + SHORT) > context_length(pruned):
            raise ValueError(
                f"the model takes {context_length(pruned)} tokens: ask for fewer with --prompt, --new-tokens"
            )
        dtype = str(pruned.dtype).removeprefix("torch.")
        with tempfile.TemporaryDirectory() as scratch:
            dense = ff.load_model(args.dense, dtype, "cpu")[0]
            for name in _SAME:
                of_pruned = str(getattr(pruned.config, name)).removeprefix(PREFIX)
                of_dense = str(getattr(dense.config, name))
                if of_pruned != of_dense:
                    reason = f"its {name} is {of_pruned}, that of {args.dense} {of_dense}"
                    raise ValueError(f"{args.pruned} was made from another model, name it with --dense: {reason}")
            dense.save_pretrained(scratch)
            del dense
            folders = {"dense": Path(scratch), "pruned": args.pruned}
            measured = take_turns(args, folders, device)
            sizes = {
                name: sum(x.stat().st_size for x in folder.glob("*.safetensors")) for name, folder in folders.items()
            }
    except (ValueError, OSError) as error:
        return fail(error, 2)
    title = f"{dtype} on {device}, {torch.get_num_threads()} threads, medians of {args.rounds}"
    console.print(table(title, args, measured, sizes))
    return 0


@dataclass
class Measured:
    """What one model took."""

    prefill: list[float]
    decode: list[float]
    peak: int = 0


def take_turns(args: Args, folders: dict[str, Path], device: str) -> dict[str, Measured]:
    """Lets one process per model prefill and decode in turns, after a round that is not counted."""
    context = get_context("spawn")
    ends: dict[str, Connection] = {}
    for name, folder in folders.items():
        ends[name], other = context.Pipe()
        context.Process(target=serve, args=(other, folder, device, args.prompt, args.new_tokens), daemon=True).start()
        other.close()  # so that the end of the process is the end of the pipe
    measured = {name: Measured([], []) for name in folders}
    for i in range(args.rounds + 1):
        for what in ("prefill", "decode"):
            for name, end in ends.items():
                seconds = ask(name, end, what)
                if i:
                    getattr(measured[name], what).append(seconds)
    for name, end in ends.items():
        measured[name].peak = int(ask(name, end, "peak"))
    return measured


def ask(name: str, end: Connection, what: str) -> float:
    """What a process answers; ValueError if it died."""
    try:
        end.send(what)
        answer: float = end.recv()
    except (EOFError, OSError) as error:
        raise ValueError(f"the process of the {name} model died; what it said is above") from error
    return answer


def serve(end: Connection, folder: Path, device: str, prompt: int, new_tokens: int) -> None:
    """Loads a model and measures what it is told to, until its process ends with the parent's."""
    from transformers import AutoModelForCausalLM

    pruned_model_class("llama")  # imports what either model needs, which is no memory of the model's
    before = psutil.Process().memory_info().rss
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}).eval()
    long, short = (torch.arange(1, n + 1, device=device)[None] % model.config.vocab_size for n in (prompt, SHORT))
    runs = {
        "prefill": lambda: model(long, use_cache=True, logits_to_keep=1),
        "decode": lambda: model.generate(
            short, attention_mask=torch.ones_like(short), min_new_tokens=new_tokens, max_new_tokens=new_tokens,
            do_sample=False,
        ),
    }  # fmt: skip
    with torch.inference_mode(), suppress(EOFError):  # the parent is done
        while True:
            what = end.recv()
            if what == "peak":
                on_cuda = device.startswith("cuda")
                end.send(torch.cuda.max_memory_allocated(device) if on_cuda else high_water_mark() - before)
                continue
            synchronize(device)
            started = time.perf_counter()
            runs[what]()
            synchronize(device)
            end.send(time.perf_counter() - started)


def table(title: str, args: Args, measured: dict[str, Measured], sizes: dict[str, int]) -> Table:
    """Both models, and how the pruned one compares."""
    dense, pruned = measured["dense"], measured["pruned"]
    report = Table(title=title)
    for column in ("", "dense", "pruned", "pruned / dense"):
        report.add_column(column, justify="right" if column else "left")
    for name, tokens, seconds in (
        (f"prefill of {args.prompt} tokens, tokens/s", args.prompt, (dense.prefill, pruned.prefill)),
        (f"decode of {args.new_tokens} tokens, tokens/s", args.new_tokens, (dense.decode, pruned.decode)),
    ):
        ratio = statistics.median(one / other for one, other in zip(*seconds, strict=True))
        report.add_row(name, *(f"{tokens / statistics.median(x):.1f}" for x in seconds), f"{ratio:.2f}")
    for name, sizes_of in (
        ("peak memory over an empty process, MiB", (dense.peak, pruned.peak)),
        ("weights on disk, MiB", (sizes["dense"], sizes["pruned"])),
    ):
        report.add_row(name, *(f"{x / 2**20:.0f}" for x in sizes_of), f"{sizes_of[1] / sizes_of[0]:.2f}")
    return report


if __name__ == "__main__":
    sys.exit(main())
