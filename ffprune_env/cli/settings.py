"""Flags of a script: a dataclass, presets that replace its defaults, and saved configs that replay a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from ffprune_env.cli.flags import read_flags

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What runs did before there was a setting for it, and so what a saved config that lacks it means.
BEFORE: dict[str, Any] = {"sequential": False, "channels_per_group": 1}
# A run folder may come from elsewhere: what code is trusted is said by who starts the program, every time.
TRUST = "trust_remote_code"
_NOT_REPLAYED = ("run", TRUST, "ray_address")  # a cluster runs code in this process's name
# What a run may go on with another value of.
_FREE = ("--workers", "--ray-address")
_TRUST_SWITCHES = ("--trust-remote-code", "--no-trust-remote-code")


def parse_settings(argv: list[str], presets: Mapping[str, T], description: str | None = None) -> T:
    """Reads the flags of a script.

    ``--preset`` picks the defaults, the settings of ``--config`` replace them, and flags on the command line win. The
    folder of a replayed run is not replayed, nor are ``--trust-remote-code`` and ``--ray-address``. ``--resume folder``
    takes everything else from the run in that folder, the folder included, but for what results do not depend on.

    Args:
        argv: the words after the script's name.
        presets: instances of one dataclass by name, ``"default"`` among them; its fields are the flags.
        description: what ``--help`` begins with.

    Raises:
        ValueError: the config is not one, or ``--resume`` has flags beside it; the message says why.
        SystemExit: with code 2 where a flag or value is not allowed, with code 0 after ``--help``.
    """
    for flag in ("--resume", "--config"):
        if argv and argv[-1] == flag:
            raise ValueError(f"{flag} needs {'the folder' if flag == '--resume' else 'the config.yaml'} of a run")
    resumed, others = _take_flag(argv, "--resume")
    if resumed is not None:
        fixed = [word for word in others if word.replace("_", "-") not in _TRUST_SWITCHES]
        for flag in _FREE:
            fixed = _take_flag(fixed, flag)[1]
        if fixed:
            raise ValueError(f"--resume goes on with the settings of {resumed}: leave out {' '.join(fixed)}")
        if not (Path(resumed) / "config.yaml").is_file():
            raise ValueError(f"--resume: there is no run to go on with in {resumed}: it has no config.yaml")
        argv = ["--config", str(Path(resumed) / "config.yaml"), "--run", resumed, *others]
    config, argv = _take_flag(argv, "--config")
    preset, _ = _take_flag(argv, "--preset")
    before = {name: value for name, value in BEFORE.items() if hasattr(presets["default"], name)}
    told = any(word.replace("_", "-") in _TRUST_SWITCHES for word in argv)
    allowed = {field.name for field in fields(cast("Any", presets["default"]))}
    saved = [] if config is None else _as_flags(Path(config), before, told, allowed)
    preset = preset or _take_flag(saved, "--preset")[0] or "default"
    default = presets.get(preset, presets["default"])
    settings = read_flags(type(default), description, [*saved, *argv], default)
    if not saved or not hasattr(default, TRUST):
        return settings
    # Whatever the words of a config come to, it is the command line alone that says this.
    said = read_flags(type(default), description, argv, default)
    return replace(cast("Any", settings), **{TRUST: getattr(said, TRUST)})  # type: ignore[no-any-return]


def require_in_range(flag: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Raises ValueError, in the words of the command line, unless a setting is None or within its bounds."""
    if value is not None and not least <= value <= most:
        allowed = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise ValueError(f"{flag} must be {allowed}, got {value}")


def require_folder_of(flag: str, file: Path | None) -> None:
    """Raises OSError if a file that is to be written at the end could not be, for want of its folder."""
    if file is not None and not file.absolute().parent.is_dir():
        raise OSError(f"{flag} {file}: there is no folder {file.parent}")


def resumes(argv: list[str]) -> bool:
    """Whether the flags ask to go on with a run."""
    return _take_flag(argv, "--resume")[0] is not None


def warn_of_trust(settings: Mapping[str, Any], where: Path) -> None:
    """Says that a saved config is not trusted where it says that remote code is; earlier versions saved that, too."""
    if settings.get(TRUST):
        logger.warning("%s says %s: it is not taken from there, give the flag if the model needs it", where, TRUST)


def _as_flags(path: Path, before: Mapping[str, Any], told: bool, allowed: Collection[str]) -> list[str]:
    """Turns a saved config into flags, so that it is checked like flags.

    Args:
        path: the config.
        before: what it may lack.
        told: whether the command line says itself if remote code is trusted.
        allowed: names of settings.
    """
    try:
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"--config {path} is not the config.yaml of a run: settings expected, got {type(settings).__name__}"
        )
    if not told:
        warn_of_trust(settings, path)
    if settings.get("ray_address") is not None:
        logger.warning("%s says ray_address: it is not taken from there, give the flag to join that cluster", path)
    flags = []
    for name, value in {**before, **settings}.items():
        flag = str(name).replace("_", "-")
        if flag.replace("-", "_") not in allowed:
            raise ValueError(f"--config {path} names {name!r}, which is no setting: take it out")
        for word in value if isinstance(value, list) else [value]:
            if str(word).startswith("--"):  # it would be read as a flag of its own
                raise ValueError(f"--config {path} has {name} {value!r}, and {word!r} is no value")
        if flag.replace("-", "_") in _NOT_REPLAYED:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            flags += [f"--{flag}", *map(str, value)]
        else:
            flags += [f"--{flag}", str(value)]  # "None" is read as nothing, which may not be the default
    return flags


def _take_flag(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Returns the value of a flag, given as two words or with =, and the arguments without it."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1], [*argv[:i], *argv[i + 2 :]]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}="), [*argv[:i], *argv[i + 1 :]]
    return None, argv
