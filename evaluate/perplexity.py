"""Perplexity of a dense or pruned model by the protocol of the paper's tables: non-overlapping windows of 2048 tokens.

    python evaluate/perplexity.py smollm2-135m --text wikitext2
    python evaluate/perplexity.py runs/<name>/model --text wiki.test.raw

The interval is Student's t over the losses of windows, if there are at least 4 of them; from 8 on it is wider where
neighbouring windows are alike, fewer are taken as independent. What was removed is read from the config of a pruned
model. Whether keys and values are in Σw, as with --heads groups, the run says that it lies in, or an attention shows
that lost some of its heads; where nothing tells, what was removed of Σw is unknown.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ffprune_env.cli.consoles import fail, say, start_logging, wide_console
from ffprune_env.cli.flag_groups import JsonFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import NamedFlags, PlaceFlags
from ffprune_env.cli.text_flags import WindowsFlags
from ffprune_env.evaluators.settings import BatchSettings
from ffprune_env.lm.batches import fitting_size
from ffprune_env.lm.intervals import neighbours_note, perplexity_interval
from ffprune_env.lm.loss import perplexity_of, window_losses
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.modeling.config_names import CHANNELS_KEY, HEADS_KEY, KV_HEADS_KEY, PREFIX, PRUNED_KEYS
from ffprune_env.modeling.layer_sizes import query_heads_per_key_head
from ffprune_env.pruning.head_groups import HeadGroups
from ffprune_env.pruning.units import find_units
from ffprune_env.run.config import CONFIG, read_config
from ffprune_env.texts.bos import BosProtocol, bos_protocol, stated
from ffprune_env.texts.windows import NAMED_TEXTS, load_windows, require_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

console = wide_console()


@dataclass(frozen=True, kw_only=True)
class Args(NamedFlags, PlaceFlags, WindowsFlags, BatchSettings, JsonFlags):
    """Settings of the measurement; every field is a flag."""

    split: Literal["test", "all"] | None = None
    """test: what a search on this text never saw; all: the whole of a file. By default test of a named text and all of
    a file; say test where the model was searched or calibrated on the same file"""

    def require_allowed(self) -> None:
        """Raises an error for what would fail, or mislead, after the model was loaded."""
        for flag, value, least in (
            ("--batch-size", self.batch_size, 1),
            ("--seq-len", self.seq_len, 2),
            ("--windows", self.windows, 1),
        ):
            require_in_range(flag, value, least)
        if self.split == "all" and self.text in NAMED_TEXTS:
            raise ValueError(f"--split all is for files: of {self.text} only the test part is never searched on")
        self.require_folder()
        require_text(self.text)


# The protocol of the paper's tables.
DEFAULTS = {"seq_len": 2048, "batch_size": 1}


@dataclass(frozen=True)
class Result:
    """What is reported.

    Attributes:
        model: as it was asked for.
        text: likewise.
        split: the part of the text.
        seq_len: tokens per window.
        bos: whether every window begins with the BOS token.
        windows: how many.
        tokens: in all windows.
        dtype: of the model.
        device: where it ran.
        sparsity: fraction of Σ w removed; None where nothing tells whether keys and values are in it.
        total_sparsity: fraction of all parameters removed.
        ppl: perplexity; inf if a window has no finite loss.
        interval: its 95 % interval; None where windows are too few or not finite.
        losses: mean loss of every window.
    """

    model: str
    text: str
    split: str
    seq_len: int
    bos: BosProtocol
    windows: int
    tokens: int
    dtype: str
    device: str
    sparsity: float | None
    total_sparsity: float
    ppl: float
    interval: tuple[float, float] | None
    losses: list[float]


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console)
    try:
        result = measure(args)
        args.write_json(vars(result))
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except RuntimeError as error:  # no memory
        return fail(error, 1)
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return 130
    console.print(table(result))
    return 0


def measure(args: Args) -> Result:
    """Loads model and text, and measures the one on the other."""
    args.require_allowed()
    split = args.split or ("test" if args.text in NAMED_TEXTS else "all")
    model, tokenizer = args.load_named(args.measured)
    windows = load_windows(args.text, tokenizer, split, args.seq_len, args.windows, model=model, bos=args.bos)
    sparsity, total_sparsity = removed(model, args.measured)
    batches = torch.split(windows, args.batch_size or fitting_size(model, windows, None))
    losses = torch.cat([window_losses(model, x, args.batch_size) for x in track(batches, "windows", console=console)])
    return Result(
        model=args.measured,
        text=args.text,
        split=split,
        seq_len=windows.shape[1],
        bos=bos_protocol(args.bos, model, tokenizer),
        windows=len(windows),
        tokens=windows.numel(),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        sparsity=sparsity,
        total_sparsity=total_sparsity,
        ppl=perplexity_of(losses),
        interval=perplexity_interval(losses),
        losses=losses.tolist(),
    )


def removed(model: PreTrainedModel, name: str) -> tuple[float | None, float]:
    """Fractions of Σ w and of all parameters that a pruned model lost; zeros for a dense one.

    Args:
        model: the model.
        name: a folder, or whatever else it was loaded by.

    Returns:
        Both; None for the first where nothing tells whether keys and values are in Σ w, and that matters.
    """
    config: PreTrainedConfig = model.config
    if not config.model_type.startswith(PREFIX):
        return 0.0, 0.0
    from transformers import AutoConfig, AutoModelForCausalLM

    own = ("model_type", "architectures", "auto_map", *PRUNED_KEYS)
    settings: dict[str, Any] = {key: value for key, value in config.to_dict().items() if key not in own}
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.model_type.removeprefix(PREFIX), **settings)
        )
    by_key = keys_went(config, name)
    found = {share_removed(dense, config, x) for x in ((True, False) if by_key is None else (by_key,))}
    return found.pop() if len(found) == 1 else None, 1 - model.num_parameters() / dense.num_parameters()


def keys_went(config: PreTrainedConfig, name: str) -> bool | None:
    """Whether keys and values went with their query heads, as the run says or what is left shows; None if nothing does.

    Args:
        config: of a pruned model.
        name: what it was loaded by.
    """
    kv_heads, heads = getattr(config, KV_HEADS_KEY, None), heads_of_run(name)
    if kv_heads is None or heads is not None:
        return kv_heads is not None and heads == "groups"
    shared, of = query_heads_per_key_head(config), config.num_attention_heads
    cut = [h == shared * k for h, k in zip(getattr(config, HEADS_KEY), kv_heads, strict=True) if 0 < h < of]
    return all(cut) if cut else None


def heads_of_run(name: str) -> str | None:
    """How heads went in the run whose folder a model lies in; None where it lies in none, or that does not say it."""
    for folder in Path(name).resolve().parents[:2] if Path(name).is_dir() else ():
        with suppress(ValueError):  # there is none, or it is somebody else's
            heads = read_config(folder / CONFIG).get("heads")
            return heads if heads in get_args(HeadGroups) else None
    return None


def share_removed(dense: PreTrainedModel, config: PreTrainedConfig, by_key: bool) -> float:
    """The fraction of Σ w that went.

    Args:
        dense: the dense model, without weights.
        config: of the pruned one.
        by_key: whether keys and values are in Σ w.
    """
    heads = KV_HEADS_KEY if by_key else HEADS_KEY
    kept: dict[str, list[int]] = {"attention": getattr(config, heads), "ffn": getattr(config, CHANNELS_KEY)}
    units = [layout.unit for layout in find_units(dense, heads="groups" if by_key else "single")]
    left = [kept[unit.kind][unit.layer] for unit in units]
    gone = sum(unit.group_params * (unit.n_groups - k) for unit, k in zip(units, left, strict=True))
    gone += sum(unit.rest_params for unit, k in zip(units, left, strict=True) if not k)
    return gone / sum(unit.n_params for unit in units)


def table(result: Result) -> Table:
    """One row."""
    where = (
        f"{result.split} part of {result.text}, windows of {result.seq_len} tokens{stated(result.bos)}, "
        f"{result.dtype} on {result.device}"
    )
    report = Table(title=escape(where))
    if result.interval is not None:
        report.caption = f"interval: Student's t over the losses of windows, {neighbours_note(result.windows)}"
    for column in ("model", "removed\nof Σw", "removed\nof model", "PPL", "95 % interval", "windows", "tokens"):
        first = column == "model"
        report.add_column(column, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    report.add_row(
        escape(result.model),
        "unknown" if result.sparsity is None else f"{result.sparsity:.2%}",
        f"{result.total_sparsity:.2%}",
        f"{result.ppl:.2f}",
        "none" if result.interval is None else "{:.2f} to {:.2f}".format(*result.interval),
        f"{result.windows}",
        f"{result.tokens:,}",
    )
    return report


if __name__ == "__main__":
    sys.exit(main())
