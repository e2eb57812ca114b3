"""How fast a pruned model is where it is served, beside the dense one: transformers, llama.cpp, vLLM.

    python evaluate/bench_serving.py runs/<name>/model --dense smollm2-135m
    python evaluate/bench_serving.py runs/<name>/model --backend llama.cpp --type q8_0 --threads 1 2 --batch 1 8

Both models live in processes of their own and take turns, so that a machine whose speed drifts slows both alike.
Medians are printed, with the median and the quartiles of the ratios taken round by round, and the ratio of their
parameters: what a server gains that spends its time on weights alone. A decode is what comes behind the prompt, whose
time is no part of it. A server that is not installed, or that refuses a model, is named with what installs it or why,
and the others are measured. What ends it early, such as Ctrl-C, leaves a table of what was measured.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

import ffprune_env as ff
from ffprune_env.cli.consoles import say, start_logging, wide_console
from ffprune_env.cli.ending import Ending
from ffprune_env.cli.flag_groups import ClockFlags, GgufFlags, JsonFlags, RoundFlags, VllmFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import DeviceFlags, PrunedFlags, TrustFlags
from ffprune_env.lm.context import context_length
from ffprune_env.lm.devices import pick_device
from ffprune_env.lm.one_line import one_line
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.modeling.config_names import PREFIX
from ffprune_env.serving.backends import Backend, BackendName, backend_of, source_of
from ffprune_env.serving.comparison import Served, as_json, compared
from ffprune_env.serving.served import in_turns
from ffprune_env.serving.worker import SHORT, Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What pruning leaves as it is.
_SAME = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")
console = wide_console()


@dataclass(frozen=True, kw_only=True)
class Args(PrunedFlags, TrustFlags, DeviceFlags, RoundFlags, GgufFlags, JsonFlags, VllmFlags, ClockFlags):
    """Settings of the comparison; every field is a flag."""

    dense: str = "smollm2-135m"
    """the dense model, as --model of train/ppo.py; it is run in the dtype of the pruned one"""
    backend: tuple[BackendName, ...] = ("transformers", "llama.cpp", "vllm")
    """where they are served"""
    threads: tuple[int, ...] = (1,)
    """threads of the CPU, each number on its own"""
    batch: tuple[int, ...] = (1, 8)
    """sequences at once, each number on its own"""
    prompt: int = 512
    """tokens of every sequence in a prefill"""
    new_tokens: int = 64
    """tokens of every sequence in a decode, behind a prompt of 16 and a first token, whose time does not count"""

    def require_allowed(self) -> None:
        """Raises ValueError for settings that no model is needed to refuse."""
        for flag, values in (("--threads", self.threads), ("--batch", self.batch), ("--backend", self.backend)):
            if not values:
                raise ValueError(f"{flag} takes at least one value")
        numbers = (("--threads", self.threads), ("--batch", self.batch), ("--rounds", (self.rounds,)))
        for flag, counts in (*numbers, ("--prompt", (self.prompt,)), ("--new-tokens", (self.new_tokens,))):
            for count in counts:
                require_in_range(flag, count, 1)

    def job(self, threads: int, device: str) -> Job:
        """What servers are asked for."""
        return Job(self.prompt, self.new_tokens, sorted(set(self.batch)), threads, device, self.trust_remote_code)


@dataclass(frozen=True)
class Models:
    """What is compared, on the CPU.

    Attributes:
        dense: the one.
        pruned: the other.
        tokenizer: of both.
        dtype: of both.
        device: where they are served, but by llama.cpp.
    """

    dense: PreTrainedModel
    pruned: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    device: str

    @property
    def ideal(self) -> float:
        """The ratio of their parameters."""
        return float(self.dense.num_parameters() / self.pruned.num_parameters())


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__)
    start_logging(console, logging.INFO)
    models: Models | None = None
    found: list[Served] = []
    ending = Ending(found)
    with ending, tempfile.TemporaryDirectory() as scratch:
        args.require_allowed()
        args.require_folder()
        models = load(args)
        for served in measure(args, models, Path(scratch)):
            found.append(served)
    if models is not None and found:
        console.print(table(args, found, models))
        with ending:
            args.write_json(as_json(found, models.ideal, settings(args, models.device)))
    return ending.code or (0 if found else 1)


def load(args: Args) -> Models:
    """Both models.

    Raises:
        ValueError: they are not alike, or take fewer tokens than they would be asked for.
        OSError: one of them is missing.
    """
    device = str(pick_device(args.device))
    pruned = ff.load_pruned(args.pruned, device="cpu")
    dtype = str(pruned.dtype).removeprefix("torch.")
    dense, tokenizer = ff.load_model(args.dense, dtype, "cpu", args.trust_remote_code)
    require_context(args, context_length(pruned))
    require_same_model(args, dense, pruned)
    return Models(dense, pruned, tokenizer, dtype, device)


def measure(args: Args, models: Models, scratch: Path) -> Iterator[Served]:
    """What both models took on every server that is there, server after server."""
    folders = {"dense": scratch / "dense", "pruned": args.pruned}
    models.dense.save_pretrained(folders["dense"])
    models.tokenizer.save_pretrained(folders["dense"])
    loaded = {"dense": models.dense, "pruned": models.pruned}
    # What cannot be written for a server is known before anything is timed on another.
    sources: dict[Backend, dict[str, Path]] = {}
    for name in args.backend:
        backend = backend_of(name, Path(args.vllm_python))
        if backend.missing is not None:
            say(f"left out: {backend.missing}")
            continue
        with leaving_out(name, args):
            sources[backend] = {
                which: source_of(backend, loaded[which], folder, folder_in(scratch, which), args.kind)
                for which, folder in folders.items()
            }
    for backend, of_backend in sources.items():
        stored = args.kind if backend.name == "llama.cpp" else models.dtype
        with leaving_out(backend.name, args):
            for threads in args.threads:
                job = args.job(threads, models.device)
                measured = in_turns(backend.python, backend.name, of_backend, job, args.rounds, args.clock)
                yield compared(f"{backend.name} {stored}", job, measured)


def folder_in(scratch: Path, which: str) -> Path:
    """A place for the files of one model: two folders may have one name."""
    place = scratch / which
    place.mkdir(exist_ok=True)
    return place


@contextmanager
def leaving_out(name: BackendName, args: Args) -> Iterator[None]:
    """Says in one line that a server refuses, and why, so that the others go on; of one alone it is an error.

    Args:
        name: of the server.
        args: the settings, which say whether it was asked for alone.

    Raises:
        ValueError, OSError: what the only server said.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if set(args.backend) == {name}:
            raise
        say(f"left out: {name}: {one_line(error)}")


def require_context(args: Args, context: int) -> None:
    """Raises ValueError for more tokens than a model takes: a prompt is answered by one more, at least."""
    longest = args.job(1, "cpu").longest
    if longest > context:
        raise ValueError(
            f"--prompt {args.prompt} and --new-tokens {args.new_tokens} need a sequence of {longest} tokens, and the "
            f"model takes {context}: give at most --prompt {context - 1} and --new-tokens {context - SHORT - 1}"
        )


def require_same_model(args: Args, dense: PreTrainedModel, pruned: PreTrainedModel) -> None:
    """Raises ValueError for a model that was made from another."""
    for name in _SAME:
        of_pruned, of_dense = (str(getattr(x.config, name)).removeprefix(PREFIX) for x in (pruned, dense))
        if of_pruned != of_dense:
            reason = f"its {name} is {of_pruned}, that of {args.dense} {of_dense}"
            raise ValueError(f"{args.pruned} was made from another model, name it with --dense: {reason}")


def settings(args: Args, device: str) -> dict[str, object]:
    """How it was measured."""
    words = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(args).items()}
    return {**words, "device": device, "device of llama.cpp": "cpu", "cores": os.cpu_count()}


def table(args: Args, found: list[Served], models: Models) -> Table:
    """Both models on all servers."""
    on = "cpu" if models.device == "cpu" else f"{models.device}, llama.cpp on cpu"
    title = f"{args.pruned} beside {args.dense} on {on}: tokens per second ({args.clock}), medians of {args.rounds}"
    report = Table(title=title)
    for column in ("served by", "threads", "", "dense", "pruned", "ratio", "quartiles", "of ideal"):
        report.add_column(column, justify="left" if column in ("served by", "") else "right", no_wrap=True)
    for served in found:
        for i, speed in enumerate(served.speeds):
            what = f"{speed.what} of {speed.batch} × {args.prompt if speed.what == 'prefill' else args.new_tokens}"
            report.add_row(
                "" if i else served.backend,
                "" if i else f"{served.threads}",
                what,
                f"{speed.dense:.1f}",
                f"{speed.pruned:.1f}",
                f"{speed.ratio:.2f}",
                f"{speed.low:.2f}–{speed.high:.2f}",
                f"{speed.ratio / models.ideal:.2f}",
            )
        report.add_row("", "", "memory of weights", "", "", f"{served.weights:.2f}")
        cache = "–" if served.cache is None else f"{served.cache:.2f}"
        report.add_row("", "", "cache per token", "", "", cache, end_section=True)
    report.caption = f"ideal ratio {models.ideal:.2f}: parameters of the dense model by those of the pruned one"
    return report


if __name__ == "__main__":
    sys.exit(main())
