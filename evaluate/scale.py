"""What a search of a large model takes: memory, and evaluations per hour, by arithmetic.

    python evaluate/scale.py --gpu-memory 80 --tflops 400

Nothing is measured and no model is loaded. What needs several GPUs is spread over them by --device-map auto: each holds
its share of the layers and works while the others wait, so that a copy of the model is as fast as one GPU. A forward
pass of T tokens is counted as 2 · parameters · T operations, at the rate that --tflops says a GPU reaches on them (the
last row but two of evaluate/bench.py). Calibrated, every copy also holds the factors of the ridge regression (W L and
L⁻¹ of every unit) in float32 and in the dtype of the weights.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from rich.table import Table

from ffprune_env.cli.consoles import fail, wide_console
from ffprune_env.cli.flags import read_flags

_GIB = 2**30
# GiB for chunks of logits, hidden states of a batch, and what CUDA keeps for itself.
_WORKING = 2


@dataclass(frozen=True)
class Args:
    """Settings of the estimate; every field is a flag."""

    gpu_memory: float = 80
    """GiB of a GPU"""
    tflops: float = 400
    """10¹² operations per second that a GPU reaches in bfloat16"""
    tokens: int = 2048
    """tokens of search text per evaluation"""


@dataclass(frozen=True)
class Shape:
    """A decoder with gated FFNs.

    Attributes:
        layers: how many.
        hidden: width of the residual stream.
        ffn: channels of an FFN.
        heads: query heads.
        key_heads: key/value heads.
        vocabulary: tokens.
        tied: whether the vocabulary projection is the embedding.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def params(self) -> int:
        """Parameters, without norms."""
        attention = 2 * self.hidden**2 * (1 + self.key_heads / self.heads)
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return round(self.layers * (attention + 3 * self.hidden * self.ffn) + embeddings)

    @property
    def factors(self) -> int:
        """Bytes of the calibration's factors of all units: L⁻¹ [columns, columns] and W L [hidden, columns]."""
        return (4 + 2) * self.layers * sum(columns**2 + self.hidden * columns for columns in (self.hidden, self.ffn))


SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49152, tied=True),
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000),
    "mistral-7b": Shape(32, 4096, 14336, 32, 8, 32000),
    "llama-2-13b": Shape(40, 5120, 13824, 40, 40, 32000),
    "llama-2-70b": Shape(80, 8192, 28672, 64, 8, 32000),
}


def main() -> int:
    """Prints the table; returns the exit code."""
    args = read_flags(Args, __doc__)
    if min(args.tflops, args.tokens) <= 0 or args.gpu_memory <= _WORKING:
        return fail(f"every number must be positive, and --gpu-memory more than the {_WORKING} GiB that work takes", 2)
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
    weights = 2 * shape.params
    gpus = math.ceil(weights / ((args.gpu_memory - _WORKING) * _GIB))
    seconds = 2 * shape.params * args.tokens / (args.tflops * 1e12)
    return [
        f"{shape.params / 1e9:.2f} B",
        f"{weights / _GIB:.1f} GiB",
        str(gpus),
        f"{weights / gpus / _GIB:.1f} GiB",
        f"{shape.factors / _GIB:.0f} GiB",
        f"{3600 / seconds:,.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
