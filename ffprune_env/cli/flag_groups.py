"""Groups of flags that scripts share, each declared once; a script's settings inherit those that it has.

The groups that the library itself is set by are :class:`~ffprune_env.evaluators.settings.EvaluatorSettings` and
:class:`~ffprune_env.search.settings.SearchSettings`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import tyro

from ffprune_env.cli.settings import require_folder_of
from ffprune_env.evaluators.objectives.settings import DataSettings
from ffprune_env.export.gguf.kinds import GgufType, kind_of, require_quantizer
from ffprune_env.lm.model_names import DEFAULT_MODEL
from ffprune_env.lm.models import DeviceMap, load_model
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.replacing import replacing
from ffprune_env.lm.shapes import WORKING
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.strict_json import strict_json
from ffprune_env.search.presets import Preset
from ffprune_env.search.problem import StartName
from ffprune_env.serving.backends import VLLM_PYTHON
from ffprune_env.serving.unit_times import Clock
from ffprune_env.texts.bos import Bos
from ffprune_env.texts.default_text import AUTO_TEXT, text_for
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.window_settings import WindowLength, WindowSettings
from ffprune_env.texts.windows import load_test_windows, require_text

if TYPE_CHECKING:
    import torch
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
    """the model: a name as --model of train/ppo.py has it, or model/ of a run"""


@dataclass(frozen=True, kw_only=True)
class PrunedFlags:
    """A pruned model on disk, as the first word."""

    pruned: tyro.conf.Positional[Path]
    """model/ of a run, or another folder that save_pruned wrote"""


@dataclass(frozen=True, kw_only=True)
class SearchedFlags:
    """A search that has ended, as the first word."""

    of: tyro.conf.Positional[Path]
    """folder that train/ppo.py left"""


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
    sparsities train/ppo.py writes none, and evaluate/allocate.py that of any of them"""
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


@dataclass(frozen=True)
class DeviceFlags:
    """Where a model runs."""

    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class TrustFlags:
    """Whose code is run."""

    trust_remote_code: bool = False
    """run Python code that a checkpoint brings along; it is not saved, and so to be said again with --resume, --config,
    and whenever a run is measured again"""


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


@dataclass(frozen=True)
class OneTextFlags:
    """A text."""

    text: str = AUTO_TEXT
    """python-docs, wikitext2, c4, or a .txt, .jsonl, .csv, .parquet, .raw, ... file: what is measured on or, with
    --test-text beside it, what is searched and calibrated on. auto takes wikitext2 for the known names of the hub
    (opt-..., llama-..., mistral-7b) and python-docs for all other models"""

    def settled(self) -> Self:
        """With the text that goes with the model in the place of ``auto``."""
        model = getattr(self, "model", getattr(self, "measured", DEFAULT_MODEL))
        return replace(self, text=text_for(str(model), self.text))


@dataclass(frozen=True)
class WindowsFlags(OneTextFlags, WindowLength):
    """Windows of a text that serve one purpose."""

    windows: int | None = None
    """windows of --text, from its beginning; None takes all"""


@dataclass(frozen=True)
class TestedTextFlags:
    """The text that figures are reported of."""

    test_text: str | None = None
    """test text; by default the test part of the text that is searched on. No search sees it"""
    test_seq_len: int = 2048
    """tokens per window of test text"""
    test_windows: int | None = 8
    """windows of test text, from its beginning; None takes all. Of fewer than 4 there is no interval"""

    def require_windows(self) -> None:
        """Raises ValueError, in the words of the command line, for windows that cannot be."""
        require_in_range("--test-windows", self.test_windows, 1)
        require_in_range("--test-seq-len", self.test_seq_len, 2)

    def load_test_beside(
        self, text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bos: Bos
    ) -> torch.Tensor:
        """The windows of test text: int64 [n, seq_len]; see :func:`ffprune_env.load_windows`.

        Args:
            text: what is searched and calibrated on, whose test part it is by default.
            model: whose context windows must fit in.
            tokenizer: its tokenizer.
            bos: whether windows begin with its BOS token.
        """
        return load_test_windows(
            text, self.test_text, tokenizer, self.test_seq_len, self.test_windows, model=model, bos=bos
        )


@dataclass(frozen=True)
class TextFlags(TestedTextFlags, OneTextFlags):
    """The text that a model is searched and calibrated on, and the one it is tested on."""

    def require_texts(self) -> None:
        """Raises OSError or ValueError for a text that is not there: said before a model is loaded for it."""
        for name in filter(None, (self.text, self.test_text)):
            require_text(name)

    @property
    def tested_on(self) -> str:
        """Where test text comes from."""
        return self.test_text or self.text

    def load_test(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bos: Bos) -> torch.Tensor:
        """The windows of test text: int64 [n, seq_len]; see :meth:`load_test_beside`."""
        return self.load_test_beside(self.text, model, tokenizer, bos)

    def load_texts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: WindowSettings
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The windows that a search looks at, int64 [n, seq_len] by purpose, and those of test text, which it does not.

        Args:
            model: whose context windows must fit in.
            tokenizer: its tokenizer.
            asked: windows for every purpose but the test.

        Raises:
            ValueError: a text is too short, or test text is also search or calibration text.
            OSError: a text cannot be read.
        """
        test = self.load_test(model, tokenizer, asked.bos)
        planned = load_planned_windows(model, tokenizer, self.text, asked)
        require_unseen(test, *planned.texts.values())
        return planned.texts, test


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
    """standard deviation of what a window says of ln PPL, in nats"""


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
