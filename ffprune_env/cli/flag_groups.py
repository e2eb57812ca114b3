"""Groups of flags that scripts share, each declared once; a script's settings inherit those that it has.

Those of models and of texts are in ``model_flags.py`` and ``text_flags.py``. The groups that the library itself is set
by are :class:`~ffprune_env.evaluators.settings.EvaluatorSettings` and
:class:`~ffprune_env.search.settings.SearchSettings`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ffprune_env.cli.settings import require_folder_of
from ffprune_env.evaluators.objectives.settings import DataSettings
from ffprune_env.export.gguf.families import require_gguf
from ffprune_env.export.gguf.kinds import GgufType, kind_of, require_quantizer
from ffprune_env.export.writable import require_writable
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.models import DeviceMap
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.replacing import replacing
from ffprune_env.lm.shapes import WORKING
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.strict_json import strict_json
from ffprune_env.search.presets import Preset
from ffprune_env.search.problem import StartName
from ffprune_env.serving.backends import VLLM_PYTHON
from ffprune_env.serving.unit_times import Clock

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class GgufFlags:
    """How the matrices of a GGUF file are stored."""

    kind: Annotated[GgufType, tyro.conf.arg(name="type")] = "f16"
    """how llama.cpp stores matrices: f16, bf16, f32, or quantized by llama.cpp itself: q8_0, q4_k_m, ..."""


@dataclass(frozen=True)
class VllmFlags:
    """Where vLLM is."""

    vllm_python: str = str(VLLM_PYTHON)
    """Python of the environment that has vLLM, as make vllm makes it"""


@dataclass(frozen=True)
class ClockFlags:
    """By what time is told."""

    clock: Clock = "wall"
    """what is timed: wall, or the CPU time of all threads together, which is steadier where others use the machine"""


@dataclass(frozen=True)
class AnswerFlags:
    """What becomes of an answer."""

    save_model: bool = True
    """write the pruned model to model/ in the folder of the run, and measure it as read back from there; of a range of
    sparsities a search writes none, and ffprune allocate that of any of them"""
    baselines: bool = True
    """measure uniform and ffn-only beside the chosen model, once that is written"""
    gguf: GgufType | None = None
    """write model.gguf for llama.cpp beside model/: f16, bf16, f32, or quantized by llama.cpp: q8_0, q4_k_m, ..."""

    def require_answer(self) -> None:
        """Raises ValueError, in the words of the command line, for a file that could not be written in the end."""
        if self.gguf is None:
            return
        if not self.save_model:
            raise ValueError(f"--gguf {self.gguf} is written of the model in model/: leave out --no-save-model")
        require_quantizer(kind_of(self.gguf))

    def require_writable_answer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ValueError for a model that cannot be written as it is asked for: said before it is searched.

        Args:
            model: the dense model.
            tokenizer: its tokenizer.
        """
        if self.save_model:
            require_resident(model, "--save-model")
            require_writable(model)
        if self.gguf is not None:
            require_gguf(model, tokenizer, self.gguf)


@dataclass(frozen=True)
class JsonFlags:
    """Results as a file, for programs."""

    json: Path | None = None
    """file to write every result to"""

    def require_folder(self) -> None:
        """Raises OSError if the file could not be written in the end, for want of its folder."""
        require_folder_of("--json", self.json)

    def write_json(self, content: Mapping[str, Any]) -> None:
        """Writes strict JSON, if that was asked for: whole, or not at all."""
        if self.json is not None:
            with replacing(self.json) as scratch:
                scratch.write_text(strict_json(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class RepeatFlags:
    """How often what is drawn at random is drawn."""

    seeds: int = 1
    """how many times each search is run, with seeds 0, 1, ..."""


@dataclass(frozen=True)
class CellsFlags:
    """Where a comparison is kept."""

    out: Path = Path("runs/comparison")
    """folder of cells and reports, of one model and one set of texts; evaluate/tables.py makes one in it for each"""


@dataclass(frozen=True)
class ContestFlags:
    """Who is compared, and from where."""

    methods: tuple[str, ...] = ()
    """which methods, by name; none stands for all"""
    start: StartName = "own"
    """where every search that takes a start begins: own (where each says itself), none (uniform, which equal scores
    stand for) or ffn-only"""


@dataclass(frozen=True)
class NoiseFlags:
    """How well invented models can be measured."""

    noise: float = 0.0
    """standard deviation of what a window says of ln PPL where half of every unit is kept, in nats"""


@dataclass(frozen=True)
class RoundFlags:
    """How often what takes time is timed."""

    rounds: int = 7
    """times that everything is measured"""


@dataclass(frozen=True)
class HardwareFlags:
    """What an estimate takes a GPU to be."""

    gpu_memory: float = 80
    """GiB of a GPU, for what is estimated"""
    tflops: float = 400
    """10¹² operations per second that a GPU reaches in bfloat16, for what is estimated"""

    def require_hardware(self) -> None:
        """Raises ValueError, in the words of the command line, for a GPU that cannot be."""
        if self.tflops <= 0 or self.gpu_memory <= WORKING:
            raise ValueError(
                f"--tflops must be positive, and --gpu-memory more than the {WORKING} GiB that work takes, got "
                f"{self.tflops:g} and {self.gpu_memory:g}"
            )


@dataclass(frozen=True)
class QuestionFlags(DataSettings):
    """Questions of the zero-shot tasks."""

    limit: int | None = None
    """questions per zero-shot task, from the first; None asks all"""
    held_out: bool = False
    """ask only questions that no search with --reward tasks sees, about half of each task; what a search with tasks in
    its reward saw is never asked"""


@dataclass(frozen=True)
class RunFlags:
    """Where a run goes, and which one it repeats or goes on with."""

    preset: Preset = "default"
    """defaults of the other flags: what worked best here, a quick and rough look, or the paper's own"""
    quick: bool = False
    """the same as --preset quick: the whole way in minutes, with little text and no baselines"""
    config: str | None = None
    """config.yaml of a run whose settings to start from; flags beside it win"""
    resume: str | None = None
    """folder of a run that was cut off, to go on with; beside it only --workers, --ray-address, --trust-remote-code"""
    run: str | None = None
    """folder of the run, new or empty; by default runs/<model>-<text>-s<sparsity>-<time>"""

    def claim(self, default: str) -> RunFolder:
        """Makes the folder of a new run this process's own, before the work of minutes begins.

        Args:
            default: how the folder is called if the user does not say; the time is put behind it.
        """
        if self.run is None:
            return RunFolder.claim_next(Path("runs") / f"{default}-{time.strftime('%Y%m%d-%H%M%S')}")
        run = RunFolder(self.run)
        run.claim()
        return run


@dataclass(frozen=True)
class WorkerFlags:
    """Other processes that measure."""

    workers: int = 0
    """measure the candidates of a rollout side by side in so many Ray actors, one per GPU or, with one thread each, per
    CPU; 0 measures one after another in this process"""
    ray_address: str | None = None
    """of a running Ray cluster that the workers live on; None starts one on this machine"""

    def require_workers(self, device_map: DeviceMap | None) -> None:
        """Raises ValueError, in the words of the command line, for workers that cannot be."""
        require_in_range("--workers", self.workers, 0)
        if self.ray_address is not None and not self.workers:
            raise ValueError("--ray-address says where workers live: say how many with --workers")
        if self.workers and device_map is not None:
            raise ValueError("a worker has one device: leave out --workers with --device-map")
        if self.workers and find_spec("ray") is None:
            raise ValueError("--workers needs Ray: pip install -e '.[ray]'")
