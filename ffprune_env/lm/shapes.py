"""How large models are, and what they cost, by arithmetic: nothing is loaded and nothing is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

GIB = 2**30
#: GiB for chunks of logits, hidden states of a batch, and what CUDA keeps for itself.
WORKING = 2
#: Bytes of a weight in bfloat16, and of one in the float32 that factors and Gram matrices are kept in.
_WEIGHT, _FACTOR = 2, 4


@dataclass(frozen=True)
class Shape:
    """A decoder.

    Attributes:
        layers: how many.
        hidden: width of the residual stream.
        ffn: channels of an FFN.
        heads: query heads.
        key_heads: key/value heads.
        vocabulary: tokens.
        tied: whether the vocabulary projection is the embedding.
        matrices: of an FFN: three where it is gated, two where it is not.
        biases: whether linear layers, and norms, have biases.
        positions: learned embeddings of positions; 0 where positions are rotated.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = False
    matrices: int = 3
    biases: bool = False
    positions: int = 0

    @property
    def params(self) -> int:
        """Parameters, shared ones once."""
        norm = self.hidden * (2 if self.biases else 1)
        # Of q, k, v and o, and of all matrices of the FFN.
        biases = 2 * (self.hidden + self._keys) + (self.matrices - 1) * self.ffn + self.hidden
        return self.multiplied + self.layers * (2 * norm + (biases if self.biases else 0)) + norm

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but norms and biases, embeddings counted in."""
        attention = 2 * self.hidden * (self.hidden + self._keys)
        embeddings = ((1 if self.tied else 2) * self.vocabulary + self.positions) * self.hidden
        return self.layers * (attention + self.matrices * self.hidden * self.ffn) + embeddings

    @property
    def _keys(self) -> int:
        return self.hidden * self.key_heads // self.heads

    @property
    def weights(self) -> int:
        """Bytes of the weights in bfloat16."""
        return _WEIGHT * self.params

    @property
    def factors(self) -> int:
        """Bytes of the calibration's factors where a search is rewarded for the calibrated model.

        It is calibrated by a second copy of them, in the dtype of the weights.
        """
        return self.exact_factors // _FACTOR * (_FACTOR + _WEIGHT)

    @property
    def exact_factors(self) -> int:
        """Bytes of those of all units in float32: L⁻¹ [columns, columns] and W L [hidden, columns]."""
        return _FACTOR * self.layers * sum(n**2 + self.hidden * n for n in (self.hidden, self.ffn))

    def gram_runs(self, room: int) -> int:
        """Runs over text that the Gram matrices of all inputs of a decoder take, where not all fit in memory at once.

        A layer has four inputs: of q, k and v, of o, of what enters the FFN, and of what leaves it. Their matrices are
        float32, and measured in order, the last first, as many in a run as there is room for.

        Args:
            room: bytes for the matrices of one run; one of them is measured whatever it takes.
        """
        runs, taken = 0, room
        for n in self.layers * (self.ffn, self.hidden, self.hidden, self.hidden):
            size = _FACTOR * n**2
            runs, taken = (runs + 1, size) if taken + size > room else (runs, taken + size)
        return runs

    def forward_operations(self, tokens: float) -> float:
        """Operations of a forward pass: 2 · parameters · tokens, norms and biases left out."""
        return 2 * self.multiplied * tokens

    def calibration_operations(self, tokens: float) -> float:
        """Operations of the calibration beside the forward pass that it is made in.

        Those are the Gram matrices of all units, n² products a token for n columns, and their factors: L takes n³ / 3
        products, L⁻¹ as many, and W L hidden · n² / 2.

        Args:
            tokens: of calibration text.
        """
        products = sum(tokens * n**2 + 2 * n**3 / 3 + self.hidden * n**2 / 2 for n in (self.hidden, self.ffn))
        return 2 * self.layers * products

    def forward_seconds(self, tokens: float, tflops: float) -> float:
        """Seconds of a forward pass at a rate of 10¹² · ``tflops`` operations per second."""
        return self.forward_operations(tokens) / (tflops * 1e12)


def gpus_for(n_bytes: float, gpu_memory: float) -> int:
    """GPUs that hold so many bytes beside what work takes on each.

    Args:
        n_bytes: to be held.
        gpu_memory: GiB of one GPU, more than :data:`WORKING`.
    """
    return max(1, math.ceil(n_bytes / ((gpu_memory - WORKING) * GIB)))


def _opt(layers: int, hidden: int, heads: int) -> Shape:
    # Positions are counted from 2 on.
    return Shape(
        layers, hidden, 4 * hidden, heads, heads, 50272, tied=True, matrices=2, biases=True, positions=2048 + 2
    )


#: By the names that ``--model`` takes, from the configs of the models.
SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49152, tied=True),
    "opt-125m": _opt(12, 768, 12),
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-2.7b": _opt(32, 2560, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "llama-7b": Shape(32, 4096, 11008, 32, 32, 32000),
    "llama-13b": Shape(40, 5120, 13824, 40, 40, 32000),
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000),
    "mistral-7b": Shape(32, 4096, 14336, 32, 8, 32000),
    "llama-2-13b": Shape(40, 5120, 13824, 40, 40, 32000),
    "llama-2-70b": Shape(80, 8192, 28672, 64, 8, 32000),
}


def shape_of(name: str) -> Shape:
    """The shape of a model by name; ValueError if it is not known."""
    if name not in SHAPES:
        raise ValueError(f"the shape of model {name!r} is not known here; known are {', '.join(SHAPES)}")
    return SHAPES[name]
