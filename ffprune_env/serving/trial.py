"""Whether servers compute what a pruned model of a family computes, tried on a tiny one."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ffprune_env.export.folder import save_pruned
from ffprune_env.export.gguf.families import why_no_gguf
from ffprune_env.export.gguf.file import write_gguf
from ffprune_env.export.gguf.kinds import TOLERANCES, GgufType, kind_of
from ffprune_env.export.gguf.llama_cpp import LlamaCpp
from ffprune_env.export.trial import FaultError, continued
from ffprune_env.lm.loss import perplexity
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.tiny_families import VOCABULARY, byte_tokenizer, tiny_of_family
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.serving import answers

#: Types of GGUF files that are tried.
TYPES: tuple[GgufType, ...] = ("f16", "bf16", "q8_0", "q4_k_m")
#: How far log-probabilities of vLLM may be from ours where it computes the same, in nats.
VLLM_TOLERANCE = 1e-3
# What 32 numbers of a row share a scale for needs heads of 32, and so does vLLM's attention.
_SCALE = 4
# llama.cpp's Qwen3 has no head of its own; tokens with a meaning of their own are none that others are merged to.
_SETTINGS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TIED = ("qwen3",)
# Texts no longer than the sliding windows of tiny models: llama.cpp has none, and that of vLLM's Cohere 2 is a token
# longer than that of transformers.
_WINDOWS, _SEQ_LEN = 64, 16
_PROMPTS, _PROMPT, _NEW = 8, 8, 8


@dataclass(frozen=True)
class LlamaCppFinding:
    """What llama.cpp made of one family.

    Attributes:
        off: by type of the file, llama.cpp's perplexity as a multiple of ours, less 1; empty where none is written.
        reason: why none is.
    """

    off: Mapping[GgufType, float]
    reason: str


@dataclass(frozen=True)
class VllmFinding:
    """What vLLM made of one family.

    Attributes:
        off: how far log-probabilities are from ours at most, in nats; infinite where a token is another, or none came.
        reason: why none came.
    """

    off: float
    reason: str = ""

    @property
    def same(self) -> bool:
        """Whether it computes what we do."""
        return self.off <= VLLM_TOLERANCE


def write_tiny(family: str, folder: Path) -> None:
    """Writes a pruned tiny model of a family, with a tokenizer: layers of several sizes, heads that share unevenly.

    Args:
        family: one that can be written.
        folder: where to.
    """
    settings = {**_SETTINGS, **({"tie_word_embeddings": True} if family in _TIED else {})}
    prunable = PrunableModel(tiny_of_family(family, _SCALE, **settings))
    rng = np.random.default_rng(0)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    kept = [max(1, unit.n_groups * (1 + i % 4) // 4) for i, unit in enumerate(prunable.units)]
    save_pruned(prunable, kept, folder, tokenizer=byte_tokenizer([("e", "n"), ("1", "2")]))


def by_llama_cpp(folder: Path) -> LlamaCppFinding:
    """Compares llama.cpp's perplexity with ours, on text that the model wrote itself, by type of the file.

    On such text any other model has a higher perplexity, so that errors do not cancel.

    Args:
        folder: as :func:`write_tiny` writes it.

    Raises:
        FaultError: they are further apart than rounding makes them.
        ValueError: llama.cpp is not installed.
    """
    model = load_pruned(folder, device="cpu").float()
    reason = why_no_gguf(model)
    if reason is not None:
        return LlamaCppFinding({}, reason.partition(";")[0])  # less what else could be written
    windows = written_by(model)
    ours, off = perplexity(model, windows), {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in TYPES:
            file = Path(scratch) / f"{name}.gguf"
            write_gguf(model, folder, file, kind_of(name))
            theirs = float(LlamaCpp(file, _SEQ_LEN).losses(windows).mean().exp())
            if abs(math.log(theirs / ours)) > TOLERANCES.get(name, math.inf):
                raise FaultError(f"its perplexity as {name} in llama.cpp is {theirs:.4f}, and should be {ours:.4f}")
            off[name] = theirs / ours - 1
    return LlamaCppFinding(off, "")


def by_vllm(folders: Mapping[str, Path], python: Path, eager: bool = True) -> dict[str, VllmFinding]:
    """Compares vLLM's greedy tokens and their log-probabilities with ours, in float32.

    Args:
        folders: by family, as :func:`write_tiny` writes them.
        python: the Python that has vLLM and ffprune-vllm.
        eager: nothing is compiled.

    Returns:
        What vLLM made of each family.

    Raises:
        ValueError: the process died.
    """
    prompts = torch.randint(3, VOCABULARY - 8, (_PROMPTS, _PROMPT), generator=torch.Generator().manual_seed(2))
    job = {"folders": list(map(str, folders.values())), "prompts": prompts.tolist(), "new_tokens": _NEW, "eager": eager}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "answers.json"
        words = [str(python), str(Path(answers.__file__)), json.dumps(job), str(out)]
        process = subprocess.run(words, capture_output=True, text=True, check=False)
        if not out.is_file():
            last = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ValueError(f"the process of vLLM died: {last}")
        found = json.loads(out.read_text(encoding="utf-8"))
    return {family: _compared(folder, prompts, found[str(folder)]) for family, folder in folders.items()}


def _compared(folder: Path, prompts: torch.Tensor, found: list[dict[str, list[float]]] | str) -> VllmFinding:
    if isinstance(found, str):
        return VllmFinding(math.inf, found)
    model, off = load_pruned(folder, device="cpu").float(), 0.0
    for prompt, answer in zip(prompts, found, strict=True):
        new = continued(model, prompt[None], _NEW)[0]
        if new.tolist() != answer["tokens"]:
            return VllmFinding(math.inf)
        with torch.no_grad():
            logits = model(torch.cat([prompt, new])[None]).logits[0, _PROMPT - 1 : -1].float()
        ours = logits.log_softmax(-1).gather(1, new[:, None])[:, 0]
        off = max(off, float((ours - torch.tensor(answer["logprobs"])).abs().max()))
    return VllmFinding(off)


def written_by(model: PreTrainedModel) -> torch.Tensor:
    """Windows of tokens drawn from a model, int64 [n, seq_len]."""
    torch.manual_seed(0)
    start = torch.randint(3, VOCABULARY - 8, (_WINDOWS, 1))
    drawn = continued(model, start, _SEQ_LEN - 1, do_sample=True, top_k=0, temperature=1.0)
    return torch.cat([start, drawn], dim=1)
