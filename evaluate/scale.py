"""What a search of a large model takes: memory, and evaluations per hour, by arithmetic.

    python evaluate/scale.py --gpu-memory 80 --tflops 400

Nothing is measured and no model is loaded. What needs several GPUs is spread over them by --device-map auto: each holds
its share of the layers and works while the others wait, so that a copy of the model is as fast as one GPU. A forward
pass of T tokens is counted as 2 · parameters · T operations, at the rate that --tflops says a GPU reaches on them (the
last row but two of evaluate/bench.py). Calibrated, every copy also holds the factors of the ridge regression (W L and
L⁻¹ of every unit) in float32 and in the dtype of the weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.table import Table

from ffprune_env.cli.consoles import fail, wide_console
from ffprune_env.cli.flag_groups import HardwareFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.shapes import GIB, SHAPES, Shape, gpus_for


@dataclass(frozen=True)
class Args(HardwareFlags):
    """Settings of the estimate; every field is a flag."""

    tokens: int = 2048
    """tokens of search text per evaluation"""


def main() -> int:
    """Prints the table; returns the exit code."""
    args = read_flags(Args, __doc__)
    try:
        args.require_hardware()
        require_in_range("--tokens", args.tokens, 1)
    except ValueError as error:
        return fail(error, 2)
    report = Table(
        title=f"{args.tokens} tokens per evaluation, GPUs of {args.gpu_memory:g} GiB at {args.tflops:g} TFLOP/s"
    )
    for column in ("", "parameters", "weights", "GPUs", "weights on each", "factors", "evaluations/h"):
        report.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, shape in SHAPES.items():
        report.add_row(name, *row(shape, args))
    wide_console().print(report)
    return 0


def row(shape: Shape, args: Args) -> list[str]:
    """The cells of one model."""
    gpus = gpus_for(shape.weights, args.gpu_memory)
    seconds = shape.forward_seconds(args.tokens, args.tflops)
    return [
        f"{shape.params / 1e9:.2f} B",
        f"{shape.weights / GIB:.1f} GiB",
        str(gpus),
        f"{shape.weights / gpus / GIB:.1f} GiB",
        f"{shape.factors / GIB:.0f} GiB",
        f"{3600 / seconds:,.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
