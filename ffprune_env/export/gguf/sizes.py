"""How large a GGUF file will be: bytes of every unit at every number of groups kept, by the types of its matrices."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.measure import Measure
from ffprune_env.export.dense_folder import save_dense
from ffprune_env.export.gguf.file import write_gguf
from ffprune_env.export.gguf.kinds import BLOCK, GgufType, Kind, kind_of
from ffprune_env.lm.phases import phase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import PrunableModel
    from ffprune_env.pruning.unit_layout import UnitLayout

_T = GGMLQuantizationType
# What llama.cpp takes where rows do not divide into blocks of 256; f16 where not even into blocks of 32.
_FALLBACKS = {_T.Q2_K: _T.IQ4_NL, _T.Q3_K: _T.IQ4_NL, _T.Q4_K: _T.Q5_0, _T.Q5_K: _T.Q5_1, _T.Q6_K: _T.Q8_0}
_ALIGNED = 32  # bytes: every tensor begins at a multiple
_INPUTS = {"attention": ("attn_q", "attn_k", "attn_v"), "ffn": ("ffn_gate", "ffn_up")}
_OUTPUT = {"attention": "attn_output", "ffn": "ffn_down"}
_FUSED = "attn_qkv"
_FLOAT = 4  # bytes: biases are float32


def gguf_size(prunable: PrunableModel, tokenizer: PreTrainedTokenizerBase, kind: GgufType) -> Measure:
    """Bytes of the GGUF file that will be written.

    The dense model is written once to see which matrix has which type: llama.cpp gives some of them more bits. A matrix
    whose rows divide into smaller blocks alone has more, too, so that a few groups more may take fewer bytes; what
    such groups cost is then what the more of them do.

    Args:
        prunable: the model, dense now.
        tokenizer: the model's, which is in the file.
        kind: how matrices are stored.

    Raises:
        ValueError: the model or the type cannot be written, or query heads could be left that share keys unevenly,
            which are repeated in the file.
    """
    if any(x.key_heads is not None and not x.balanced for x in prunable.layouts):
        raise ValueError(
            "--budget size: query heads that go one by one leave keys that a GGUF file must repeat, so that its size "
            "is not known: take --heads balanced"
        )
    with phase("writing", f"the dense model as {kind}, to see its sizes"):
        tensors, dense = _dense_file(prunable, tokenizer, kind_of(kind))
    wide = 1 if kind_of(kind).plain else BLOCK
    units = [replace(x.unit, costs=unit_bytes(x, tensors, wide)) for x in prunable.layouts]
    return Measure("size", tuple(units), dense)


def unit_bytes(layout: UnitLayout, tensors: Mapping[str, Any], wide: int) -> tuple[int, ...]:
    """What a unit takes with 0, 1, ... groups kept; never less than with more of them.

    Args:
        layout: the unit.
        tensors: of the dense file, by name.
        wide: the width of an FFN is made a multiple of this, by channels of zeros.
    """
    unit, at = layout.unit, f"blk.{layout.unit.layer}."
    # Of a unit that is gone zeros may be written: no more than of its last group (see ``layers.py``).
    written = np.maximum(np.arange(unit.n_groups + 1), 1)
    total = np.zeros(unit.n_groups + 1, dtype=np.int64)
    whole = tensors.get(f"{at}{_FUSED}.weight") if unit.kind == "attention" else None
    for name, module in zip(_INPUTS[unit.kind], layout.inputs, strict=False):
        matrix = whole or tensors[f"{at}{name}.weight"]
        rows = written * (module.out_features // unit.n_groups)
        if unit.kind == "ffn":
            rows = _widened(rows, wide)
        row = _row_bytes(matrix.tensor_type, np.array([int(matrix.shape[0])]))[0]
        total += rows * row if whole is not None else _aligned(rows * row)
        if module.bias is not None:
            total += _aligned(rows * _FLOAT)
    output = tensors[f"{at}{_OUTPUT[unit.kind]}.weight"]
    columns = written * layout.width
    if unit.kind == "ffn":
        columns = _widened(columns, wide)
    total += _aligned(int(output.shape[1]) * _row_bytes(output.tensor_type, columns))
    least: Sequence[int] = np.minimum.accumulate(total[::-1])[::-1].tolist()
    return tuple(least)


def _dense_file(prunable: PrunableModel, tokenizer: PreTrainedTokenizerBase, kind: Kind) -> tuple[dict[str, Any], int]:
    """The tensors of the dense model's file, by name, without their numbers, and its size."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, file = Path(scratch) / "dense", Path(scratch) / "dense.gguf"
        write_gguf(save_dense(prunable, tokenizer, folder), folder, file, kind)
        return {x.name: _Stored(x) for x in gguf.GGUFReader(file).tensors}, file.stat().st_size


class _Stored:
    """A tensor of a file that may be gone: its type, and its shape, columns first."""

    def __init__(self, tensor: Any) -> None:
        self.tensor_type, self.shape = GGMLQuantizationType(tensor.tensor_type), [int(n) for n in tensor.shape]


def _row_bytes(kind: GGMLQuantizationType, columns: IntArray) -> IntArray:
    """Bytes of a row of so many columns, in the type that llama.cpp takes for it: as ``columns``."""
    small = _FALLBACKS.get(kind, kind)
    found = np.array([_bytes(_T.F16, n) for n in columns], dtype=np.int64)
    for candidate in (small, kind):
        block = GGML_QUANT_SIZES[candidate][0]
        fits = columns % block == 0
        found[fits] = [_bytes(candidate, n) for n in columns[fits]]
    return found


def _bytes(kind: GGMLQuantizationType, numbers: int) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return -(-int(numbers) // block) * size


def _widened(channels: IntArray, wide: int) -> IntArray:
    widened: IntArray = -(-channels // wide) * wide
    return widened


def _aligned(size: IntArray) -> IntArray:
    aligned: IntArray = -(-size // _ALIGNED) * _ALIGNED
    return aligned
