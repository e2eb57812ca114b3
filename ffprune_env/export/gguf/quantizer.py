"""llama.cpp's own quantizer, in a process of its own: where it finds what it did not expect, it ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from ffprune_env.export.gguf import quantizer_process
from ffprune_env.export.gguf.kinds import Kind, require_quantizer


def quantize(source: Path, target: Path, kind: Kind) -> None:
    """Writes a file of plain numbers once more, quantized.

    Args:
        source: a GGUF file of f32, f16 or bf16.
        target: the file to write.
        kind: how.

    Raises:
        ValueError: llama.cpp is not installed, or does not quantize this model; the message is its own.
    """
    require_quantizer(kind)
    code, threads = str(int(kind.file_type)), str(torch.get_num_threads())
    command = [sys.executable, "-m", quantizer_process.__name__, str(source), str(target), code, threads]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not target.is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = lines[-1].strip() if lines else f"exit code {done.returncode}"
        raise ValueError(f"llama.cpp cannot quantize the model to {kind.name}: {said}")
