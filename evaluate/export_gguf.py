"""Writes a pruned model as a GGUF file for llama.cpp, and compares llama.cpp's perplexity with ours.

    python evaluate/export_gguf.py runs/<name>/model model.gguf
    python evaluate/export_gguf.py runs/<name>/model model.gguf --type q4_k_m --windows 4 --seq-len 512
    python evaluate/export_gguf.py runs/<name>/model model.gguf --type q8_0 --ask "What is a tuple?"

f32, f16 and bf16 are written as they are; the other types are quantized by llama.cpp itself: pip install cyllama.
Perplexities are compared on so many windows of text, and without --windows not at all. Where they are further apart
than rounding to f32, f16, bf16 or q8_0 makes them, or llama.cpp splits the text otherwise, the exit code is 1. What
smaller types cost is printed, and no error.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape

from ffprune_env.cli.consoles import fail, start_logging
from ffprune_env.cli.flag_groups import GgufFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import PrunedFlags
from ffprune_env.cli.text_flags import WindowsFlags
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.export.gguf.kinds import TOLERANCES
from ffprune_env.export.gguf.llama_cpp import LlamaCpp, require_llama_cpp
from ffprune_env.export.gguf.vocabulary import require_chat_template
from ffprune_env.lm.loss import window_losses
from ffprune_env.lm.models import load_model
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.same_model import require_same_model
from ffprune_env.texts.windows import NAMED_TEXTS, Split, load_windows

console = Console(highlight=False)
_ANSWER = 64  # tokens


@dataclass(frozen=True, kw_only=True)
class Args(PrunedFlags, WindowsFlags, GgufFlags):
    """Settings of the export; every field is a flag."""

    file: tyro.conf.Positional[Path]
    """file to write"""
    ask: str | None = None
    """a question; llama.cpp's answer, by the chat template in the file, is printed"""


# No windows: nothing is compared.
DEFAULTS = {"windows": 0, "seq_len": 2048}


def main() -> int:
    """Writes the file; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console, logging.WARNING)
    try:
        require_in_range("--windows", args.windows, 0)
        require_in_range("--seq-len", args.seq_len, 2)
        for flag, given in (("--windows", args.windows != 0), ("--ask", args.ask is not None)):
            if given:
                require_llama_cpp(flag)
        if args.file.is_dir():
            raise ValueError(f"{args.file} is a folder: name a file in it, such as {args.file / 'model.gguf'}")
        if args.ask is not None:
            require_chat_template(args.pruned, "--ask")
        report = export_gguf(args.pruned, args.file, args.kind)
        for line in report.told(args.kind):
            console.print(f"{escape(str(args.file))}: {line}", soft_wrap=True)
        if args.ask is not None:
            console.print(escape(LlamaCpp(args.file).answer(args.ask, _ANSWER)), soft_wrap=True)
        return compare(args) if args.windows != 0 else 0
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except RuntimeError as error:  # no memory
        return fail(error, 1)


def compare(args: Args) -> int:
    """Prints both perplexities on the same windows, and how far they are apart; returns 1 if that is too far."""
    model, tokenizer = load_model(str(args.pruned), dtype="float32", device="cpu")
    split: Split = "test" if args.text in NAMED_TEXTS else "all"
    windows = load_windows(args.text, tokenizer, split, args.seq_len, args.windows, model=model, bos=args.bos)
    ours = window_losses(model, windows).double().mean().exp().item()
    llama_cpp = LlamaCpp(args.file, windows.shape[1])
    theirs = llama_cpp.losses(windows).mean().exp().item()
    console.print(
        f"perplexity on {len(windows)} windows of {windows.shape[1]} tokens of {escape(args.text)}: "
        f"ours {ours:.4f} (float32), llama.cpp {theirs:.4f}: {theirs / ours - 1:+.3%}",
        soft_wrap=True,
    )
    # The text of a special token, such as the BOS in front, is that token for one of the two and text for the other.
    sample = tokenizer.decode(windows[0, :200], skip_special_tokens=True)
    same = llama_cpp.tokens(sample) == tokenizer(sample, add_special_tokens=False)["input_ids"]
    console.print(f"llama.cpp's tokenizer gives {'the same' if same else 'OTHER'} tokens")
    try:
        if args.kind in TOLERANCES:
            require_same_model(theirs, ours, TOLERANCES[args.kind], f"{args.file}, on {args.text}")
        if not same:
            raise ValueError(
                f"llama.cpp makes other tokens of text than the model was made for: do not use {args.file}"
            )
    except ValueError as error:
        return fail(error, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
