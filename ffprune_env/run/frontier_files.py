"""Models as files that people can serve, pruned and dense, in several types: size, perplexity and speed in llama.cpp.

What was measured is kept beside the run, file by file, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from ffprune_env.export.gguf.families import why_no_gguf
from ffprune_env.export.gguf.file import write_gguf
from ffprune_env.export.gguf.kinds import GgufType, kind_of
from ffprune_env.export.gguf.llama_cpp import LlamaCpp, require_llama_cpp
from ffprune_env.lm.loss import perplexity_of
from ffprune_env.lm.phases import phase, windows_size
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.run.best import fell_back
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.strict_json import as_measured
from ffprune_env.serving.comparison import compared
from ffprune_env.serving.latency import machine
from ffprune_env.serving.served import in_turns
from ffprune_env.serving.worker import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

#: How the model that was pruned is called; speeds are multiples of its own as f16.
DENSE = "dense"
BASE: GgufType = "f16"
_KEPT = "frontier.json"
# Its name begins like that of the lock on a run, which says that there is none.
_LOCK = ".lock-frontier"
# One thread and one sequence: what a laptop does for one person.
JOB = Job(prompt=256, new_tokens=32, batches=[1], threads=1)


@dataclass(frozen=True)
class Pace:
    """How fast a file is at one thing.

    Attributes:
        tokens: per second of CPU time, the median of all rounds.
        ratio: as a multiple of the dense model as f16, which took turns with it; the median.
        low: lower quartile of the ratios.
        high: their upper quartile.
    """

    tokens: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class FilePoint:
    """A file that can be had.

    Attributes:
        model: ``dense``, or the folder of the pruned model in that of the run.
        sparsity: σ that was asked for; 0 of the dense model.
        kind: how its matrices are stored.
        size: bytes.
        ppl: llama.cpp's perplexity of it; infinite of a model that collapsed.
        decode: one token after the other.
        prefill: a prompt at once.
        made_of: what the model was when it was measured.
    """

    model: str
    sparsity: float
    kind: GgufType
    size: int
    ppl: float
    decode: Pace
    prefill: Pace
    made_of: str


@dataclass(frozen=True)
class Source:
    """A model that can be written as a file.

    Attributes:
        model: its name; see :class:`FilePoint`.
        sparsity: of it.
        made_of: changes when the model does.
        folder: of the pruned model; None of the dense one.
        fell_back: whether it is not calibrated as was asked for.
    """

    model: str
    sparsity: float
    made_of: str
    folder: Path | None = None
    fell_back: bool = False


class KeptFiles:
    """``frontier.json`` of a run: every file that was measured, on the same text and in the same way.

    Several processes may measure files of one run: whatever another one has added meanwhile stays.

    Args:
        run: its folder.
        measured_on: what figures are asked to be; others are dropped.
        by: who measures now; what anybody else measured is dropped. None takes everybody's, for who only looks.
    """

    def __init__(self, run: RunFolder, measured_on: Mapping[str, Any], by: Mapping[str, Any] | None) -> None:
        self._run, self._about = run, {"measured_on": dict(measured_on), "made_by": by}
        found = self._found()
        self._of = _about(found)
        self._points = self._usable(found)

    def of(self, sources: Sequence[Source], kinds: Sequence[GgufType]) -> list[FilePoint]:
        """Those of some models in some types, as far as they were measured."""
        pairs = [(source, kind) for source in sources for kind in kinds]
        return [self._points[source.model, kind] for source, kind in pairs if self.has(source, kind)]

    def has(self, source: Source, kind: GgufType) -> bool:
        """Whether a model was measured as a file of this type, and has not changed since."""
        point = self._points.get((source.model, kind))
        return point is not None and point.made_of == source.made_of

    def add(self, point: FilePoint) -> None:
        """Keeps one more.

        Raises:
            ValueError: another process has begun meanwhile to measure in another way, whose figures would be lost.
        """
        with FileLock(self._run.path / _LOCK):
            found = self._found()
            if _about(found) not in (self._of, self._about):
                raise ValueError(
                    f"another process measures files of {self._run.path} on other text, in other rounds or by other "
                    f"versions: wait for it, and give the command again"
                )
            self._points |= self._usable(found)
            self._points[point.model, point.kind] = point
            files = [asdict(x) for x in self._points.values()]
            self._run.write_json(_KEPT, {**self._about, "files": files})
            self._of = self._about

    def _found(self) -> dict[str, Any]:
        return as_measured(self._run.read_json(_KEPT) or {})

    def _usable(self, found: Mapping[str, Any]) -> dict[tuple[str, GgufType], FilePoint]:
        """What is kept, by model and type, as far as it is what figures are asked to be."""
        same = all(found.get(name) == value for name, value in self._about.items() if value is not None)
        every = found.get("files", []) if same else []
        return {(point.model, point.kind): point for point in map(_read, every)}


def _about(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found.get(name) for name in ("measured_on", "made_by")}


def _read(content: Mapping[str, Any]) -> FilePoint:
    paces = {name: Pace(**content[name]) for name in ("decode", "prefill")}
    return FilePoint(**{**content, **paces})


def sources_of(run: RunFolder) -> list[Source]:
    """The dense model of a run, and the pruned ones that it and ``ffprune allocate`` wrote, by σ.

    Args:
        run: its folder.
    """
    pruned, asked = [], run.read_config().get("calibration")
    for folder in (run.path, *sorted(x.parent for x in run.path.glob("s*/model"))):
        best = RunFolder(folder).read_json("best.json")
        if best is not None and (folder / "model" / "config.json").is_file():
            name = str(folder.relative_to(run.path))
            found = made_of(folder / "model")
            other = fell_back(best, asked=asked)
            pruned.append(Source(name, float(best["target_sparsity"]), found, folder / "model", other))
    dense = Source(DENSE, 0.0, run.identity()["weights"])
    return [dense, *sorted(pruned, key=lambda source: source.sparsity)]


def made_of(folder: Path) -> str:
    """Something that changes when the model in a folder does, without reading gigabytes: sizes and times of its files.

    Args:
        folder: of the model.
    """
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    return ", ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def measured_on(text: str, windows: int | None, rounds: int) -> dict[str, Any]:
    """What the figures of files are asked to be, to be kept beside them.

    Args:
        text: digest of all windows of test text.
        windows: how many of them are measured on, from the first; None: all.
        rounds: how often speed is timed.
    """
    # llama.cpp runs no code of a model, and what was kept before does not say whether it may.
    job = {name: value for name, value in asdict(JOB).items() if name != "trust_remote_code"}
    # Figures that do not say this counted the time of the prompt in a decode.
    return {"text": text, "windows": windows, "rounds": rounds, "clock": "cpu", **job, "decode": "without the prompt"}


def made_by() -> dict[str, Any]:
    """Who writes and times files here: versions and the machine, which the figures depend on as well.

    Raises:
        ValueError: nobody, since llama.cpp is missing.
    """
    require_llama_cpp("measuring files")
    versions = {name: metadata.version(name) for name in ("ffprune", "gguf", "cyllama")}
    return {"versions": versions, "machine": machine()}


def measure_files(
    sources: Sequence[Source],
    kinds: Sequence[GgufType],
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: torch.Tensor,
    rounds: int,
    kept: KeptFiles,
) -> None:
    """Writes, measures and deletes every file that was not measured yet; each is kept as soon as it is.

    Args:
        sources: models.
        kinds: types of files.
        dense: the model that was pruned, whose f16 file takes turns with every other; it is moved to the CPU.
        tokenizer: its tokenizer.
        windows: int64 [n, seq_len], of test text.
        rounds: how often speed is timed.
        kept: what was measured before; what is measured is added.

    Raises:
        ValueError: llama.cpp has no such model, or cannot quantize it; the message says why.
    """
    reason = why_no_gguf(dense)
    if reason is not None:
        raise ValueError(reason)
    with tempfile.TemporaryDirectory() as scratch:
        beside = Path(scratch) / "tokenizer"
        tokenizer.save_pretrained(beside)
        dense = dense.to("cpu")
        base = Path(scratch) / f"base.{BASE}.gguf"
        write_gguf(dense, beside, base, kind_of(BASE))
        for source in sources:
            missing = [kind for kind in kinds if not kept.has(source, kind)]
            if not missing:
                continue
            model = dense if source.folder is None else load_pruned(source.folder, device="cpu")
            for kind in missing:
                file = Path(scratch) / f"one.{kind}.gguf"
                with phase("measuring a file", f"σ = {source.sparsity:g} as {kind}"):
                    write_gguf(model, source.folder or beside, file, kind_of(kind))
                    kept.add(_measured(source, kind, file, base, windows, rounds))
                file.unlink()


def _measured(source: Source, kind: GgufType, file: Path, base: Path, windows: torch.Tensor, rounds: int) -> FilePoint:
    with phase("perplexity in llama.cpp", windows_size(tuple(windows.shape))):
        ppl = perplexity_of(LlamaCpp(file, windows.shape[1]).losses(windows))
    took = in_turns(Path(sys.executable), "llama.cpp", {"dense": base, "pruned": file}, JOB, rounds, "cpu")
    speeds = {x.what: Pace(x.pruned, x.ratio, x.low, x.high) for x in compared("llama.cpp", JOB, took).speeds}
    return FilePoint(
        source.model, source.sparsity, kind, file.stat().st_size, ppl, speeds["decode"], speeds["prefill"],
        source.made_of,
    )  # fmt: skip


def best_of(points: Sequence[FilePoint], better: Callable[[FilePoint], float]) -> set[tuple[str, GgufType]]:
    """Those that no other is better than in both perplexity and something else.

    Args:
        points: files; one without a finite perplexity is none of the best, however small.
        better: what is the better the smaller it is, such as the size.
    """
    return {
        (x.model, x.kind)
        for x in points
        if math.isfinite(x.ppl)
        and not any(
            y.ppl <= x.ppl and better(y) <= better(x) and (y.ppl, better(y)) != (x.ppl, better(x)) for y in points
        )
    }
