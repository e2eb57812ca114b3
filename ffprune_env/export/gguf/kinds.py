"""How the matrices of a GGUF file may be stored: as plain numbers, or quantized by llama.cpp itself."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from ffprune_env.lm.same_model import rounding_tolerance

GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k"
]  # fmt: skip
#: Numbers that share a scale in the smallest blocks. A row that holds no whole number of them is quantized by no type.
BLOCK = 32
_T = GGMLQuantizationType
_K = (_T.Q2_K, _T.Q3_K, _T.Q4_K, _T.Q5_K, _T.Q6_K)
# llama.cpp gives embedding and head more bits than the rest.
_HOLDS: dict[str, tuple[GGMLQuantizationType, ...]] = {
    "f32": (_T.F32,),
    "f16": (_T.F16,),
    "bf16": (_T.BF16,),
    "q8_0": (_T.Q8_0,),
    "q4_0": (_T.Q4_0, _T.Q4_1, _T.Q6_K),
}
# llama.cpp's cache is f16 whatever the weights are; in q8_0 weights and inputs have 8 bits.
_F16 = rounding_tolerance(torch.float16)
#: How far mean losses of a file may be from those of the model; the other types cost what they cost.
TOLERANCES: dict[GgufType, float] = {"f32": _F16, "f16": _F16, "bf16": 0.01, "q8_0": 0.03}


@dataclass(frozen=True)
class Kind:
    """One way to store matrices; vectors are always float32.

    Attributes:
        name: what people call it.
        holds: types of the matrices, where the length of their rows is no obstacle; the first is that of most.
        file_type: llama.cpp's number for it.
    """

    name: str
    holds: tuple[GGMLQuantizationType, ...]
    file_type: LlamaFileType

    @property
    def plain(self) -> bool:
        """Whether numbers are only rounded; the others are written by llama.cpp's quantizer."""
        return self.holds[0] in (_T.F32, _T.F16, _T.BF16)

    @property
    def block(self) -> int:
        """How many numbers of a row share a scale."""
        return GGML_QUANT_SIZES[self.holds[0]][0]

    @property
    def strict(self) -> bool:
        """Whether rows that hold no whole number of blocks are an error; llama.cpp stores them otherwise where not."""
        return self.block == BLOCK


def kind_of(name: str) -> Kind:
    """The way of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in get_args(GgufType):
        raise ValueError(f"unknown type {name!r}; allowed are {', '.join(get_args(GgufType))}")
    every = {"f32": "ALL_F32"}.get(name, f"MOSTLY_{name.upper()}")
    return Kind(name, _HOLDS.get(name, _K), LlamaFileType[every])


def plain_kind_of(dtype: torch.dtype) -> Kind:
    """The way that rounds nothing of weights of a dtype."""
    return kind_of({torch.float16: "f16", torch.bfloat16: "bf16"}.get(dtype, "f32"))


def require_quantizer(kind: Kind) -> None:
    """Raises ValueError, with what to install, where llama.cpp is needed and missing."""
    if not kind.plain and importlib.util.find_spec("cyllama") is None:
        raise ValueError(f"{kind.name} is quantized by llama.cpp, which is not installed: pip install cyllama")
