"""Time as a budget: what every unit takes on a server of this machine, timed once and kept, and checked in the end."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ffprune_env.budget.budget import MeasureName
from ffprune_env.budget.measure import Measure
from ffprune_env.export.dense_folder import save_dense
from ffprune_env.lm.identity import identity_of_versions
from ffprune_env.lm.models import cache_folder
from ffprune_env.lm.one_line import one_line
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.replacing import replacing
from ffprune_env.serving.backends import source_of, versions_of
from ffprune_env.serving.unit_times import NANO, Server, ShapeTimes, What, parts_of, priced, time_units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ffprune_env.pruning.prunable import PrunableModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnitTimes:
    """What was timed of one model on one server.

    Attributes:
        dense: seconds of the dense model, by what was timed.
        shapes: the units, in the order of :func:`~ffprune_env.serving.unit_times.shapes_of`.
    """

    dense: Mapping[What, float]
    shapes: Sequence[ShapeTimes]

    def measure(self, prunable: PrunableModel, name: MeasureName) -> Measure:
        """The time as a budget counts it, in nanoseconds.

        Args:
            prunable: the model that was timed.
            name: ``prefill``, ``decode``, or ``latency`` for one after the other.
        """
        units = priced(prunable.units, self.shapes, self.dense, name)
        return Measure(name, tuple(units), sum(round(self.dense[what] * NANO) for what in parts_of(name)))


def unit_times(prunable: PrunableModel, tokenizer: PreTrainedTokenizerBase, server: Server) -> UnitTimes:
    """What the units take; a model of this shape that was timed on this machine and server before is not timed again.

    Args:
        prunable: the ranked model, dense now.
        tokenizer: the model's.
        server: where and how.
    """
    about = provenance_of(prunable, server)
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_folder() / "unit-times" / f"{name}.json"
    kept = _kept(file)
    if kept is not None:
        logger.info("what units take on %s was timed before: %s", server.backend.name, file)
        return kept
    dense, shapes = time_units(prunable, tokenizer, server)
    content = {"about": about, "dense": dense, "shapes": [asdict(shape) for shape in shapes]}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as scratch:
            scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        logger.warning("what units take is not kept, and is timed again next time: %s", one_line(error))
    return UnitTimes(dense, shapes)


def provenance_of(prunable: PrunableModel, server: Server) -> dict[str, Any]:
    """What times depend on: shapes, numbers, server and its versions, machine."""
    config = prunable.model.config
    return {
        "family": config.model_type,
        "vocabulary": config.get_text_config().vocab_size,
        "units": [[unit.kind, unit.n_groups, unit.n_params, unit.rest_params] for unit in prunable.units],
        "dtype": str(prunable.model.dtype),
        "backend": server.backend.name,
        "versions": versions_of(server.backend) | {"ffprune": identity_of_versions()["source"]},
        "type": server.gguf_type if server.backend.name == "llama.cpp" else None,
        "job": asdict(server.job),
        "rounds": server.rounds,
        "clock": server.clock,
        "machine": machine(),
        "gpu": _gpu(server),
    }


def served_time(
    prunable: PrunableModel,
    tokenizer: PreTrainedTokenizerBase,
    server: Server,
    times: UnitTimes,
    name: str,
    folder: Path,
) -> int:
    """What a written model takes, timed beside the dense one.

    Args:
        prunable: the dense model.
        tokenizer: the model's.
        server: where and how.
        times: of the dense model, which that of now is set to.
        name: ``prefill``, ``decode`` or ``latency``.
        folder: of the pruned model.

    Returns:
        Nanoseconds, in which the dense model takes what ``times`` says.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        models = {
            "dense": (save_dense(prunable, tokenizer, place / "dense"), place / "dense"),
            "pruned": (load_pruned(folder, device="cpu"), folder),
        }
        sources = {
            which: source_of(server.backend, model, at, place, server.gguf_type)
            for which, (model, at) in models.items()
        }
        found = server.beside(sources["dense"], [sources["pruned"]])
    return sum(round(found[what][1][0] * times.dense[what] * NANO) for what in parts_of(name))


def _kept(file: Path) -> UnitTimes | None:
    """What was timed before; None where nothing was, or it cannot be read: then it is timed again."""
    try:
        return _read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read(content: Mapping[str, Any]) -> UnitTimes:
    shapes = [
        ShapeTimes(x["units"], tuple(x["kept"]), {cast("What", what): tuple(of) for what, of in x["share"].items()})
        for x in content["shapes"]
    ]
    return UnitTimes(content["dense"], shapes)


def machine() -> list[Any]:
    """What tells this machine from others that are slower or faster."""
    return [platform.node(), platform.machine(), _processor(), os.cpu_count()]


def _gpu(server: Server) -> str | None:
    """What the GPU calls itself that a server runs on; None of one on the CPU, as llama.cpp always is here."""
    on_gpu = server.backend.name != "llama.cpp" and server.job.device.startswith("cuda")
    return torch.cuda.get_device_name(server.job.device) if on_gpu else None


def _processor() -> str:
    """What the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
