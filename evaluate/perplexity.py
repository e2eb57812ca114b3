"""Perplexity of a dense or pruned model by the protocol of the paper's tables: non-overlapping windows of 2048 tokens.

    python evaluate/perplexity.py smollm2-135m --text wikitext2
    python evaluate/perplexity.py runs/<name>/model --text wiki.test.raw

The interval is Student's t over the losses of windows, if there are at least 4 of them; from 8 on it is wider where
neighbouring windows are alike, fewer are taken as independent. What was removed is read from the config of a pruned
model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
from ffprune_env.modeling.layer_sizes import dense_key_heads, query_heads_per_key_head
from ffprune_env.pruning.units import find_units
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
        sparsity: fraction of Σ w removed.
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
    sparsity: float
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
    sparsity, total_sparsity = removed(model)
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


def removed(model: PreTrainedModel) -> tuple[float, float]:
    """Fractions of Σ w and of all parameters that a pruned model lost; zeros for a dense one."""
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
    heads, kv_heads = getattr(config, HEADS_KEY), getattr(config, KV_HEADS_KEY, None)
    # Where every layer has as many query heads for a key/value head as before, these went together, and count.
    shared = query_heads_per_key_head(dense.config)
    by_key = (
        kv_heads is not None
        and min(kv_heads) < dense_key_heads(dense.config)
        and all(h == shared * k for h, k in zip(heads, kv_heads, strict=True))
    )
    kept = {"attention": kv_heads if by_key else heads, "ffn": getattr(config, CHANNELS_KEY)}
    units = [layout.unit for layout in find_units(dense, heads="groups" if by_key else "single")]
    left = [kept[unit.kind][unit.layer] for unit in units]
    gone = sum(unit.group_params * (unit.n_groups - k) for unit, k in zip(units, left, strict=True))
    gone += sum(unit.rest_params for unit, k in zip(units, left, strict=True) if not k)
    return gone / sum(unit.n_params for unit in units), 1 - model.num_parameters() / dense.num_parameters()


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
        f"{result.sparsity:.2%}",
        f"{result.total_sparsity:.2%}",
        f"{result.ppl:.2f}",
        "none" if result.interval is None else "{:.2f} to {:.2f}".format(*result.interval),
        f"{result.windows}",
        f"{result.tokens:,}",
    )
    return report


if __name__ == "__main__":
    sys.exit(main())
