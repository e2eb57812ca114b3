"""Writes a pruned Llama or Mistral as a GGUF file for llama.cpp, and compares its perplexity with ours.

    python evaluate/export_gguf.py runs/<name>/model model.gguf
    python evaluate/export_gguf.py runs/<name>/model model.gguf --type q8_0 --windows 4     # needs llama-cpp-python

Perplexities are compared on so many windows of text, and without --windows not at all. Where they are further apart
than the rounding of the type makes them, or llama.cpp splits the text otherwise, the exit code is 1.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markup import escape

from ffprune_env.cli.consoles import fail, start_logging
from ffprune_env.cli.flag_groups import PrunedFlags, WindowsFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.export.gguf_file import GgufType, export_gguf
from ffprune_env.lm.loss import window_losses
from ffprune_env.lm.models import load_model
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.same_model import require_same_model, rounding_tolerance
from ffprune_env.texts.windows import NAMED_TEXTS, Split, load_windows

console = Console(highlight=False)
# How far apart the mean losses may be: f16 rounds weights of float32 to 11 bits, and in q8_0 weights and inputs have 8.
TOLERANCES: dict[GgufType, float] = {"f16": rounding_tolerance(torch.float16), "q8_0": 0.03}


@dataclass(frozen=True, kw_only=True)
class Args(PrunedFlags, WindowsFlags):
    """Settings of the export; every field is a flag."""

    file: tyro.conf.Positional[Path]
    """file to write"""
    kind: Annotated[GgufType, tyro.conf.arg(name="type")] = "f16"
    """how matrices are stored: f16 or q8_0"""


# No windows: nothing is compared.
DEFAULTS = {"windows": 0, "seq_len": 2048}


def main() -> int:
    """Writes the file; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console, logging.WARNING)
    try:
        require_in_range("--windows", args.windows, 0)
        require_in_range("--seq-len", args.seq_len, 2)
        if args.windows != 0 and importlib.util.find_spec("llama_cpp") is None:
            raise ValueError("--windows compares with llama.cpp: pip install llama-cpp-python (ten minutes to compile)")
        report = export_gguf(args.pruned, args.file, args.kind)
        console.print(f"{escape(str(args.file))}: {report.size / 2**20:.1f} MiB, {args.kind}")
        if report.expanded_layers:
            console.print(
                f"in {report.expanded_layers} layers the query heads share keys unevenly; keys and values are repeated "
                f"there: {report.expanded_params:,} parameters more, cache {report.cache_growth:.2f} times"
            )
        return compare(args) if args.windows != 0 else 0
    except (ValueError, OSError) as error:
        return fail(error, 2)


def compare(args: Args) -> int:
    """Prints both perplexities on the same windows, and how far they are apart; returns 1 if that is too far."""
    model, tokenizer = load_model(str(args.pruned), dtype="float32", device="cpu")
    split: Split = "test" if args.text in NAMED_TEXTS else "all"
    windows = load_windows(args.text, tokenizer, split, args.seq_len, args.windows, model=model, bos=args.bos)
    ours = window_losses(model, windows).double().mean().exp().item()
    theirs = llama_cpp_perplexity(args.file, windows)
    console.print(
        f"perplexity on {len(windows)} windows of {windows.shape[1]} tokens of {escape(args.text)}: "
        f"ours {ours:.4f} (float32), llama.cpp {theirs:.4f}: {theirs / ours - 1:+.3%}"
    )
    sample = tokenizer.decode(windows[0, :200])
    same = tokens_of(args.file, sample) == tokenizer(sample, add_special_tokens=False)["input_ids"]
    console.print(f"llama.cpp's tokenizer gives {'the same' if same else 'OTHER'} tokens")
    try:
        require_same_model(theirs, ours, TOLERANCES[args.kind], f"{args.file}, on {args.text}")
        if not same:
            raise ValueError(
                f"llama.cpp makes other tokens of text than the model was made for: do not use {args.file}"
            )
    except ValueError as error:
        return fail(error, 1)
    return 0


def llama_cpp_perplexity(path: Path, windows: torch.Tensor) -> float:
    """Perplexity by llama.cpp of windows of tokens, int64 [n, seq_len], with the mean taken as ours is."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=windows.shape[1], n_batch=512, logits_all=True, verbose=False)
    losses = []
    for window in windows:
        model.reset()
        model.eval(window.tolist())
        logits = torch.from_numpy(np.asarray(model.scores[: len(window) - 1]))
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).double())
    return torch.stack(losses).mean().exp().item()


def tokens_of(path: Path, text: str) -> list[int]:
    """What llama.cpp makes of a text, without special tokens."""
    from llama_cpp import Llama

    tokens: list[int] = Llama(str(path), vocab_only=True, verbose=False).tokenize(text.encode(), add_bos=False)
    return tokens


if __name__ == "__main__":
    sys.exit(main())
