"""Flags that name a model and say where it runs, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ffprune_env.lm.models import DeviceMap, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class NameFlags:
    """A model by name."""

    model: str = "smollm2-135m"
    """smollm2-135m, opt-125m, opt-1.3b, llama-7b, ..., a local folder, or a hub id owner/repository"""


@dataclass(frozen=True, kw_only=True)
class NamedFlags:
    """A model by name, which is not a flag but the first word."""

    measured: tyro.conf.Positional[str]
    """the model: a name as --model of a search has it, or model/ of a run"""


@dataclass(frozen=True, kw_only=True)
class PrunedFlags:
    """A pruned model on disk, as the first word."""

    pruned: tyro.conf.Positional[Path]
    """model/ of a run, or another folder that save_pruned wrote"""


@dataclass(frozen=True, kw_only=True)
class SearchedFlags:
    """A search that has ended, as the first word."""

    of: tyro.conf.Positional[Path]
    """folder that a search left"""


@dataclass(frozen=True)
class TrustFlags:
    """Whose code is run."""

    trust_remote_code: bool = False
    """run Python code that a checkpoint brings along; it is not saved, and so to be said again with --resume, --config,
    and whenever a run is measured again"""


@dataclass(frozen=True)
class DeviceFlags:
    """Where a model runs."""

    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class PlaceFlags(TrustFlags, DeviceFlags):
    """How a model is loaded, and where to."""

    dtype: str = "auto"
    """auto (bfloat16 where the hardware multiplies it fast), bfloat16, float16 or float32"""
    device_map: DeviceMap | None = None
    """auto spreads a model that is too large for one device over all GPUs, host memory and disk. What is on host or
    disk is neither calibrated nor written"""
    max_memory: str | None = None
    """with --device-map auto, what the model may take of every device, such as 6GB; None: what is free"""

    def load_named(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads a model and its tokenizer; see :func:`ffprune_env.load_model`."""
        return load_model(name, self.dtype, self.device, self.trust_remote_code, self.device_map, self.max_memory)


@dataclass(frozen=True)
class ModelFlags(PlaceFlags, NameFlags):
    """A model, and where it runs."""

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads the model and its tokenizer; see :func:`ffprune_env.load_model`."""
        return self.load_named(self.model)
