"""A pruned model as a GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from ffprune_env.export.gguf.families import ARCHITECTURES, require_rows, why_no_gguf
from ffprune_env.export.gguf.key_heads import KeyHeads
from ffprune_env.export.gguf.kinds import BLOCK, GgufType, Kind, kind_of, plain_kind_of, require_quantizer
from ffprune_env.export.gguf.layers import written_layers
from ffprune_env.export.gguf.quantizer import quantize
from ffprune_env.export.gguf.report import GgufReport
from ffprune_env.export.gguf.settings import write_settings
from ffprune_env.export.gguf.tensors import tensors
from ffprune_env.export.gguf.vocabulary import write_vocabulary
from ffprune_env.export.writable import dense_family
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.replacing import replacing, scratch_beside

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_gguf(folder: str | Path, out: str | Path, kind: GgufType = "f16") -> GgufReport:
    """Writes a pruned model as one GGUF file, with its tokenizer and its chat template.

    Every key/value head of llama.cpp serves the same number of query heads. Where the query heads that are left share
    theirs unevenly, key and value heads are repeated until they do; heads that no query reads any more are left out,
    and so are layers that lost attention and FFN. One that lost either has zeros there where llama.cpp needs any.
    What is quantized is quantized by llama.cpp, from a file beside ``out`` that has the numbers of the model as they
    are; channels of zeros make the width of every FFN a multiple of 32 for it.

    Args:
        folder: what :func:`~ffprune_env.export.folder.save_pruned` wrote, with a tokenizer.
        out: the file; appears under its name when all of it is written.
        kind: how matrices are stored; vectors are float32.

    Raises:
        ValueError: the model or the type cannot be written, or llama.cpp, which quantizes, is not installed.
        OSError: the folder is incomplete, or the file cannot be written.
    """
    asked = kind_of(kind)
    require_quantizer(asked)
    return write_gguf(load_pruned(folder, device="cpu"), Path(folder), Path(out), asked)


def write_gguf(model: PreTrainedModel, folder: Path, out: Path, kind: Kind) -> GgufReport:
    """Writes a model that is loaded, pruned or dense; see :func:`export_gguf`.

    Args:
        model: on the CPU.
        folder: where its tokenizer is.
        out: the file.
        kind: how matrices are stored.
    """
    reason = why_no_gguf(model)
    if reason is not None:
        raise ValueError(reason)
    queries = [x.projections.queries for x in written_layers(model)]
    heads = {f"the heads of layer {i} together": x.out_features for i, x in enumerate(queries)}
    require_rows(kind, {"hidden_size": model.config.hidden_size, **heads})
    key_heads = KeyHeads.of(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as scratch:
        if kind.plain:
            _write(scratch, model, folder, key_heads, kind, 1)
        else:
            with scratch_beside(out) as whole:
                _write(whole, model, folder, key_heads, plain_kind_of(model.dtype), BLOCK)
                quantize(whole, scratch, kind)
    return GgufReport.of(out, kind, key_heads)


def _write(file: Path, model: PreTrainedModel, folder: Path, key_heads: KeyHeads, kind: Kind, block: int) -> None:
    """Writes a file of plain numbers."""
    family = dense_family(model)
    architecture = ARCHITECTURES[family]
    writer = gguf.GGUFWriter(file, architecture, use_temp_file=True)
    try:
        write_settings(writer, model, key_heads, kind, block)
        write_vocabulary(writer, folder, model.config.vocab_size, family)
        _write_tensors(writer, tensors(model, architecture, key_heads.written, block), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


@torch.no_grad()
def _write_tensors(writer: gguf.GGUFWriter, named: Iterable[tuple[str, torch.Tensor]], kind: Kind) -> None:
    for name, tensor in named:
        values: npt.NDArray[Any] = tensor.detach().float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        if kind.name == "f16" and np.abs(values).max() > np.finfo(np.float16).max:
            raise ValueError(f"{name} has numbers that f16 cannot hold: take bf16 or f32")
        writer.add_tensor(name, gguf.quants.quantize(values, kind.holds[0]), raw_dtype=kind.holds[0])
