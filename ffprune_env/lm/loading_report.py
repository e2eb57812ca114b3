"""Models that hold exactly what their checkpoint holds: what transformers fills with noise or drops is refused here."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffprune_env.lm.quiet import quiet_transformers
from ffprune_env.lm.stored_tensors import StoredTensor, stored_tensors
from ffprune_env.lm.tied import correct_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_SHOWN = 3
_ZEROS = "nothing but zeros"
#: The fill value of attention masks, a constant that old versions of transformers stored with the weights.
_MASK_VALUE = "masked_bias"


def load_whole(model_class: Any, source: str | Path, **options: Any) -> PreTrainedModel:
    """Loads a model with ``from_pretrained``, and refuses it unless model and checkpoint hold the same tensors.

    Weights that are tied in the model may be in the file once, or twice. A head of its own stays one, and the config
    says so. Constants that the model computes anew, such as rotary frequencies and causal masks, may be in the file.

    Args:
        model_class: a model class, or an Auto class.
        source: a folder or a hub id.
        options: what ``from_pretrained`` is told beside.

    Raises:
        OSError: tensors are missing, have no place in the model or another shape, are stored in a format that needs a
            scale which nothing tells, hold numbers that are not finite, or zeros where a copy was cut off.
    """
    here = Path(source) if "gguf_file" not in options and Path(source).is_dir() else None
    stored = stored_tensors(here) if here else {}
    with quiet_transformers(), _no_hub_conversion(), _report() as failed:
        try:
            model, info = model_class.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except RuntimeError as error:
            if failed():
                raise OSError(_some(failed(), "is stored|are stored") + " in a way that cannot be converted") from error
            raise
    if here is None and "gguf_file" not in options:
        stored = stored_tensors(_snapshot(str(source)))
    _refuse_unscaled(model, stored)
    _refuse_differences(model, info, stored)
    _look_at_numbers(model)
    correct_config(model, set(map(_places(model, model.state_dict()), stored)))
    return model


def _snapshot(repository: str) -> Path:
    """The folder that holds what was loaded from the hub."""
    from transformers.utils import cached_file

    return Path(cached_file(repository, "config.json")).parent


def _refuse_unscaled(model: PreTrainedModel, stored: dict[str, StoredTensor]) -> None:
    """Numbers of 8 bits and fewer mean nothing without their scale, and transformers would take them as they are."""
    if getattr(model, "hf_quantizer", None) is not None:
        return
    place = _places(model, (name for name, _ in model.named_parameters()))
    odd = [
        name
        for name, tensor in stored.items()
        if not tensor.is_plain and (not tensor.is_integer or place(name) is not None)
    ]
    if odd:
        kind = f"stored as {stored[odd[0]].dtype}"
        raise OSError(
            f"{_some(odd, f'is {kind}|are {kind}')}, and config.json has no quantization_config that says how to scale "
            f"them; use the checkpoint from before quantization"
        )


def _refuse_differences(model: PreTrainedModel, info: dict[str, Any], stored: dict[str, StoredTensor]) -> None:
    wrong_shape = {name: (tuple(got), tuple(wanted)) for name, got, wanted in info["mismatched_keys"]}
    wrong_shape |= _wrong_on_disk(model, stored)
    harmless = _harmless(model, stored)
    places: dict[str | None, list[str]] = {}
    place = _places(model, model.state_dict())
    for name in stored:
        places.setdefault(place(name), []).append(name)
    twice = [name for at, names in places.items() if at is not None and len(names) > 1 for name in names]
    found = [
        _some(info["missing_keys"], "is missing|are missing"),
        _some(
            (name for name in info["unexpected_keys"] if not harmless(name)), "has no place in it|have no place in it"
        ),
        _some(twice, "|have the place of another"),
        _some(
            wrong_shape,
            "has another shape|have another shape",
            lambda name: f"{name}: got {wrong_shape[name][0]}, expected {wrong_shape[name][1]}",
        ),
    ]
    if any(found):
        raise OSError(
            f"the weights are not those of the {type(model).__name__} that config.json describes: "
            f"{'; '.join(filter(None, found))}; give a whole checkpoint of it, or correct config.json"
        )


def _wrong_on_disk(
    model: PreTrainedModel, stored: dict[str, StoredTensor]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes that differ among weights which stay on disk: transformers compares those that it reads."""
    folders = [module for module, device in (getattr(model, "hf_device_map", None) or {}).items() if device == "disk"]
    expected = {name: tuple(x.shape) for name, x in model.state_dict().items()} if folders else {}
    on_disk = {name for name in expected if any(not f or name == f or name.startswith(f"{f}.") for f in folders)}
    place = _places(model, on_disk)
    placed = [(place(name), tensor.shape) for name, tensor in stored.items()]
    return {name: (shape, expected[name]) for name, shape in placed if name is not None and shape != expected[name]}


def _harmless(model: PreTrainedModel, stored: dict[str, StoredTensor]) -> Callable[[str], bool]:
    """Tells constants that the model computes itself from weights that it has no place for."""
    kept = set(model.state_dict())
    computed = {name for name, _ in model.named_buffers() if name not in kept}
    place = _places(model, computed)
    # A buffer that another version of the code kept elsewhere: its own name tells, unless weights are called so too.
    names = {name.rpartition(".")[2] for name in computed} - {name.rpartition(".")[2] for name in kept}

    prefix = f"{model.base_model_prefix}."
    weights = tuple({x for name, _ in model.named_parameters() for x in (name, name.removeprefix(prefix))})

    def harmless(name: str) -> bool:
        own = name.rpartition(".")[2]
        tensor = stored.get(name)
        # An index or a mask of attention, unless it is called after a weight and says how to read that.
        is_index = tensor is not None and tensor.is_integer and not name.startswith(weights)
        return place(name) is not None or own in names or own == _MASK_VALUE or is_index

    return harmless


def _places(model: PreTrainedModel, names: Iterable[str]) -> Callable[[str], str | None]:
    """Finds the name that a stored tensor has in the model: a base model is stored without the prefix that it has."""
    known, prefix = set(names), f"{model.base_model_prefix}."

    def place(name: str) -> str | None:
        return next((x for x in (name, prefix + name, name.removeprefix(prefix)) if x in known), None)

    return place


def _look_at_numbers(model: PreTrainedModel) -> None:
    """One pass over the weights in memory, with no copy and one wait per device; those on disk are not read."""
    tensors = {name: x for name, x in model.named_parameters() if x.is_floating_point() and x.device.type != "meta"}
    found: dict[torch.device, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            # The fastest of all passes, and NaN stays.
            found.setdefault(tensor.device, {})[name] = tensor.sum().float()
        sums = {
            name: total
            for on_device in found.values()
            for name, total in zip(on_device, torch.stack(list(on_device.values())).tolist(), strict=True)
        }
        # A sum can also grow too large, or be zero by chance.
        odd = [name for name, x in sums.items() if not math.isfinite(x) and not tensors[name].isfinite().all()]
        empty = [name for name, x in sums.items() if x == 0 and not tensors[name].any()]
    if odd:
        kind = f"not finite as {str(tensors[odd[0]].dtype).removeprefix('torch.')}"
        raise OSError(
            f"{_some(odd, f'is {kind}|are {kind}')}; give a sound checkpoint, or another dtype if the numbers are too "
            f"large for this one"
        )
    _refuse_holes({name: tensors[name] for name in empty})


def _refuse_holes(empty: dict[str, torch.Tensor]) -> None:
    """Refuses what a download leaves that reserved its space and was cut off: zeros, in norms as in matrices.

    Matrices of zeros alone may be meant: blocks that were masked, or are new and not trained yet.
    """
    matrices = [name for name, tensor in empty.items() if tensor.ndim > 1]
    if not matrices:
        return
    if any(tensor.ndim == 1 and name.endswith("weight") for name, tensor in empty.items()):
        raise OSError(f"{_some(empty, f'holds {_ZEROS}|hold {_ZEROS}')}, as a copy that was cut off; copy it again")
    logger.warning("%s; if they are not meant, the copy was cut off", _some(matrices, f"holds {_ZEROS}|hold {_ZEROS}"))


def _some(names: Iterable[str], what: str, show: Callable[[str], str] = lambda name: name) -> str:
    """How many tensors there are of which something holds, ``one|several`` of them, and the first; "" for none."""
    found = sorted(names, key=_natural)
    if not found:
        return ""
    one, several = what.split("|")
    shown = ", ".join([*map(show, found[:_SHOWN]), *(["…"] if len(found) > _SHOWN else [])])
    return f"1 tensor {one} ({shown})" if len(found) == 1 else f"{len(found)} tensors {several} ({shown})"


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.\s]", name)]


@contextlib.contextmanager
def _report() -> Iterator[Callable[[], list[str]]]:
    """Keeps what is refused here out of transformers' log; gives the tensors that it says it could not convert."""
    records: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "LOAD REPORT" in message:
            records.append(re.sub(r"\x1b\[[0-9;]*m", "", message))
        return not any(said in message for said in ("LOAD REPORT", "checkpoint seem corrupted"))

    def failed() -> list[str]:
        return re.findall(r"^(\S+)\s*\|\s*CONVERSION\b", "\n".join(records), re.MULTILINE)

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield failed
    finally:
        logger.removeFilter(keep)


@contextlib.contextmanager
def _no_hub_conversion() -> Iterator[None]:
    """What is loaded is what the repository holds, not what a service of the hub made of it in a pull request."""
    name = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
