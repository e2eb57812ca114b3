"""A budget in the place of a sparsity: its flags."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from ffprune_env.budget.budget import TIMES, Budget
from ffprune_env.cli.flag_groups import ClockFlags, VllmFlags
from ffprune_env.export.gguf.kinds import GgufType
from ffprune_env.serving.backends import BackendName, backend_of
from ffprune_env.serving.unit_times import Server
from ffprune_env.serving.worker import Job

# Tokens of the prompt and of the answer that are timed.
_PROMPT, _ANSWER = 128, 32


@dataclass(frozen=True)
class BudgetFlags(VllmFlags, ClockFlags):
    """What may stay of a model, where that is not said as a sparsity."""

    budget: Budget | None = None
    """what may stay, in the place of --sparsity: a measure and an amount. Measures are prunable (what --sparsity is
    of), parameters (of the whole model), size (bytes of the file that is written: model.safetensors or, with --gguf,
    that one), kv (bytes of cache per token), and decode, prefill and latency (time on --budget-server, on this
    machine). Amounts are 20% (so much goes), 0.8x (so much stays), or what may stay: 1.1B, 150MB"""
    budget_server: BackendName = "llama.cpp"
    """where a budget of time is measured: transformers, llama.cpp (in the type of --gguf, or f16) or vllm"""

    def require_budget(self, asked: Collection[str]) -> None:
        """Raises ValueError for a budget beside a sparsity, or of a server that is not there.

        Args:
            asked: names of the settings that somebody gave a value.
        """
        if self.budget is None:
            return
        if "sparsity" in asked:
            raise ValueError(f"--budget {self.budget} says how much goes: leave out --sparsity")
        if self.budget.measure in TIMES:
            missing = backend_of(self.budget_server, Path(self.vllm_python)).missing
            if missing is not None:
                raise ValueError(f"--budget {self.budget} is timed in {self.budget_server}: {missing}")

    def server(self, gguf: GgufType | None, device: str, trust_remote_code: bool) -> Server:
        """Where a budget of time is measured: one prompt, and one answer.

        Args:
            gguf: how llama.cpp stores matrices; None: f16.
            device: that the model is on.
            trust_remote_code: code that the model brought along may be run there, too.
        """
        job = Job(_PROMPT, _ANSWER, [1], torch.get_num_threads(), device, trust_remote_code)
        return Server(backend_of(self.budget_server, Path(self.vllm_python)), gguf or "f16", job, clock=self.clock)
