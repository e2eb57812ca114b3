"""What can be done with a model that a run has written, in lines that can be copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffprune_env.export.gguf.families import why_no_gguf
from ffprune_env.export.writable import dense_family
from ffprune_env.lm.model_names import DEFAULT_MODEL
from ffprune_env.texts.windows import DEFAULT_TEXT, split_tested

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Families that ffprune-vllm has no class for: vLLM runs the code in the folder.
WITHOUT_PLUGIN = ("olmo2",)


def serving(model: PreTrainedModel, folder: Path, gguf: Path, written: bool) -> str:
    """The command that serves a pruned model, or that writes what can be served, by its family.

    Args:
        model: of the same family and kind, dense or pruned.
        folder: of the pruned model.
        gguf: where a file for llama.cpp goes.
        written: whether it is there.
    """
    if written:
        return f"llama-server -m {gguf}"
    if why_no_gguf(model) is None:
        return f"ffprune export-gguf {folder} {gguf}"
    if dense_family(model) in WITHOUT_PLUGIN:
        return f"vllm serve {folder} --trust-remote-code"
    return f"vllm serve {folder}  (with ffprune-vllm)"


def next_steps(run: Path, about: Mapping[str, Any], served: str, recoverable: bool) -> list[str]:
    """Commands and a line of Python.

    Args:
        run: the folder of a sparsity, with the model in ``model/``.
        about: what ``best.json`` tells of texts and of the dense model.
        served: the command that serves the model; see :func:`serving`.
        recoverable: whether ``ffprune recover`` finds the settings of the run.
    """
    model, dense = run / "model", about.get("model", DEFAULT_MODEL)
    text = about.get("test_text", DEFAULT_TEXT)
    split = split_tested(about.get("text", DEFAULT_TEXT), text)
    beside = "" if dense == DEFAULT_MODEL else f" --dense {dense}"
    steps = [
        f"measure it:  ffprune perplexity {model} --text {text} --split {split}",
        f"time it:     ffprune bench-serving {model}{beside}",
        f"serve it:    {served}",
        f'load it:     model = ffprune_env.load_pruned("{model}")',
    ]
    return [*steps, f"train it:    ffprune recover {run} --recover-minutes 10"] if recoverable else steps
