"""``config.yaml``: every setting of a run, read as data; what earlier versions wrote is translated here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.limits.limit import LimitName
from ffprune_env.lm.one_line import one_line
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.target_settings import TargetSettings

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Name of the file.
CONFIG = "config.yaml"
#: Whose code is trusted, and what cluster is joined, says who starts a program, every time: a run folder may come from
#: elsewhere.
TRUST = "trust_remote_code"
SAID_EVERY_TIME = (TRUST, "ray_address")
#: What a config does not hold, or holds of one process alone.
NOT_REPLAYED = (*SAID_EVERY_TIME, "run", "config", "resume")

_RENAMED = {
    "samples": "search_windows",
    "final_samples": "final_windows",
    "timesteps": "evaluations",
    "n_steps": "rollout",
    "ramp_samples": "ramp_windows",
}
# Settings that came later: the one that every config of a run has beside them, and what was done before.
_ADDED = (
    ("ridge_scale", "ridge", "relative"),
    ("calibration_text", "calibration_windows", None),
    ("heads", "channels_per_group", "single"),
    ("bos", "seq_len", "never"),
    ("openings", "ridge", 0),
    ("data_dir", "seq_len", None),
    ("reward", "seq_len", "ppl"),
)
_CRITERIA = {"fisher": "taylor", "wanda+fisher": "wanda+taylor"}


def not_a_run(folder: Path) -> str:
    """What is said of a folder, or what was taken for one, that no run was begun in.

    Args:
        folder: what was given.
    """
    meant = f": did you mean {folder.parent}?" if (folder.parent / CONFIG).is_file() else ""
    given = "it has no config.yaml" if folder.exists() else "there is no such folder"
    return f"{folder} is not a run, {given}; give the folder that ffprune search left{meant}"


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run, by the names that they have now.

    Args:
        path: its config.yaml.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file, {path / CONFIG}")
    try:
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(not_a_run(path.parent) if path.name == CONFIG else f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not the config.yaml of a run: settings expected, got {type(settings).__name__}")
    return translated({str(name).replace("-", "_"): value for name, value in settings.items()})


def translated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of any version by the names and values that they have now.

    Until 0.1 three flags said what ``calibration`` and ``reward_model`` say, and what a config of the first versions
    lacks was not done then: no calibration in sequence, and channels one by one.

    Args:
        settings: by name.
    """
    found = {_RENAMED.get(name, name): value for name, value in settings.items()}
    if "watch_windows" in found:  # what a search was watched on was for its patience alone
        found.setdefault("eval_every", 0)
    if found.get("criterion") in _CRITERIA:
        found["criterion"] = _CRITERIA[found["criterion"]]
    if "calibrated" in found:
        sequential, calibrated = found.pop("sequential", False), found.pop("calibrated")
        found.setdefault("channels_per_group", 1)
        found["reward_model"] = "calibrated" if calibrated else "cut"
        found["calibration"] = "sequential" if sequential else "ridge"
        if found.get("ridge", 0) is None:
            del found["ridge"]
            found["calibration"] = "none"
    # What the config of a run lacks that was made before there was such a setting.
    for setting, beside, then in _ADDED:
        if beside in found:
            found.setdefault(setting, then)
    return found


def evaluator_settings(config: Mapping[str, Any], where: Path) -> EvaluatorSettings:
    """How a run ranked, calibrated and measured its model, to do it again.

    Args:
        config: its settings, as :func:`read_config` gives them.
        where: its config.yaml, for the message.

    Raises:
        ValueError: a setting is missing, or is none that there can be.
    """
    names = [field.name for field in fields(EvaluatorSettings)]
    missing = [name for name in (*names, "model", "text", "dtype", "device", "sparsity") if name not in config]
    if missing:
        raise ValueError(f"{where} is not the config.yaml of a run of this version: it has no {missing[0]}")
    settings = checked(EvaluatorSettings, {name: config[name] for name in names}, str(where))
    replace(settings, reward="ppl").require_allowed()  # who measures by another one will look for it
    of_search = {field.name: config[field.name] for field in fields(SearchSettings) if field.name in config}
    return replace(settings, **checked(SearchSettings, of_search, str(where)).needless)


def targets_of(config: Mapping[str, Any], run: Path) -> TargetSettings:
    """The sparsities that a run was asked for: one, several, or a range.

    Args:
        config: its settings, as :func:`read_config` gives them.
        run: its folder, for the message.

    Raises:
        ValueError: there are none.
    """
    asked = config.get("sparsity")
    try:
        found = checked(TargetSettings, {"sparsity": asked}, str(run))
        if found.targets and all(0 <= target < 1 for target in found.targets):
            return found
    except ValueError:
        pass
    raise ValueError(
        f"{run} is not a run: its sparsity is {asked!r}, not one number or several between 0 and 1, nor a range of them"
    )


def require_by_sparsity(config: Mapping[str, Any], run: Path) -> None:
    """Raises ValueError for a run that was asked for something else than sparsities.

    With a budget in the place of a sparsity units are counted in another measure than in all others, and σ is not in
    the settings; with a limit nothing was chosen at the sparsities that are.

    Args:
        config: its settings, as :func:`read_config` gives them.
        run: its folder, for the message.
    """
    for name in ("budget", *get_args(LimitName)):
        if config.get(name) is not None:
            asked = f"--{name.replace('_', '-')} {config[name]}"
            raise ValueError(f"{run} was asked for {asked}, and runs are compared by sparsity")


def checked(settings: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of a dataclass with these values; ValueError, in one line, for what a field does not allow.

    Args:
        settings: the dataclass.
        values: by the names of its fields.
        where: where they stand, for the message.
    """
    try:
        return TypeAdapter(settings).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        raise ValueError(f"{where} has {name} {values.get(name)!r}: {first['msg'].lower()}") from error


def warn_of_trust(settings: Mapping[str, Any], where: Path) -> None:
    """Says that a saved config is not believed where it says that code is trusted or a cluster joined."""
    for name in SAID_EVERY_TIME:
        if settings.get(name):
            logger.warning("%s says %s: it is not taken from there, give the flag if you want it", where, name)
