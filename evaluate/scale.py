"""What a search of a large model takes: memory per worker, GPUs, and evaluations per hour, by arithmetic.

    python evaluate/scale.py --gpu-memory 80 --tflops 400

Nothing is measured and no model is loaded. A forward pass of T tokens is counted as 2 · parameters · T operations, at
the rate that --tflops says a GPU reaches on them; calibrated, the factors of the ridge regression (W L and L⁻¹ of every
unit, float32) are read once per evaluation, through the bus from the host (--factor-storage cpu). GPUs are those of one
worker, evaluations per hour those of one worker too.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

_GIB = 2**30


@dataclass(frozen=True)
class Args:
    """Settings of the estimate; every field is a flag."""

    gpu_memory: float = 80
    """GiB of a GPU"""
    tflops: float = 400
    """10¹² operations per second that a GPU reaches in bfloat16: measure yours with evaluate/bench.py"""
    bandwidth: float = 25
    """GB per second between host and GPU"""
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
        return 4 * self.layers * sum(columns**2 + self.hidden * columns for columns in (self.hidden, self.ffn))


SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49152, tied=True),
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000),
    "mistral-7b": Shape(32, 4096, 14336, 32, 8, 32000),
    "llama-2-13b": Shape(40, 5120, 13824, 40, 40, 32000),
    "llama-2-70b": Shape(80, 8192, 28672, 64, 8, 32000),
}


def main() -> int:
    """Prints the table; returns the exit code."""
    args = tyro.cli(Args, description=__doc__)
    if min(args.gpu_memory, args.tflops, args.bandwidth, args.tokens) <= 0:
        Console(stderr=True).print("[bold red]error:[/] every number must be positive")
        return 2
    report = Table(
        title=f"{args.tokens} tokens per evaluation, GPUs of {args.gpu_memory:g} GiB at {args.tflops:g} TFLOP/s"
    )
    hourly = ("plain/h", "calibrated/h")  # evaluations per hour and worker
    for column in ("", "params", "weights", "GPUs", "factors", *hourly):
        report.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, shape in SHAPES.items():
        report.add_row(name, *row(shape, args))
    Console().print(report)
    return 0


def row(shape: Shape, args: Args) -> list[str]:
    """The cells of one model."""
    weights = 2 * shape.params
    working = 2 * _GIB  # chunks of logits, hidden states of a batch, and what CUDA keeps for itself
    gpus = math.ceil((weights + working) / (args.gpu_memory * _GIB))
    # Layers that are spread over several GPUs run one after another.
    forward = 2 * shape.params * args.tokens / (args.tflops * 1e12)
    streamed = shape.factors / (args.bandwidth * 1e9)
    hourly = [3600 / seconds for seconds in (forward, forward + streamed)]
    return [
        f"{shape.params / 1e9:.2f} B",
        f"{weights / _GIB:.1f} GiB",
        f"{gpus}",
        f"{shape.factors / _GIB:.0f} GiB",
        *(f"{x:,.0f}" for x in hourly),
    ]


if __name__ == "__main__":
    sys.exit(main())
