"""The settings of a script: flags, on top of a saved config, on top of a preset."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from ffprune_env.cli.flags import read_flags, settled
from ffprune_env.run.config import (
    NOT_REPLAYED,
    SAID_EVERY_TIME,
    TRUST,
    checked,
    not_a_run,
    read_config,
    warn_of_trust,
)

T = TypeVar("T")

# What a run may go on with another value of.
_FREE = ("workers", *SAID_EVERY_TIME)


def parse_settings(
    argv: list[str], settings: type[T], presets: Mapping[str, Mapping[str, Any]], description: str | None = None
) -> T:
    """Reads the flags of a script that has presets and replays runs.

    ``--preset`` picks the defaults, the settings of ``--config`` replace them, and flags on the command line win. The
    folder of a replayed run is not replayed, nor are ``--trust-remote-code`` and ``--ray-address``. ``--resume folder``
    takes everything else from the run in that folder, the folder included, but for what results do not depend on.

    Args:
        argv: the words after the script's name.
        settings: a dataclass; its fields are the flags. ``preset``, ``config``, ``resume`` and ``run`` are among them.
        presets: what differs from the defaults, by name.
        description: what ``--help`` begins with.

    Raises:
        ValueError: the config is not one, or ``--resume`` has flags beside it; the message says why.
        SystemExit: with code 2 where a flag or value is not allowed, with code 0 after ``--help``.
    """
    first = _first_look(argv)
    saved: dict[str, Any] = {}
    if first.resume is not None:
        config = Path(first.resume) / "config.yaml"
        if not config.is_file():
            raise ValueError(f"--resume: {not_a_run(Path(first.resume))}")
        saved = _replayed(config, argv, settings) | {"run": first.resume}
    elif first.config is not None:
        saved = _replayed(Path(first.config), argv, settings)
        if first.preset not in (None, saved.get("preset", first.preset)):
            raise ValueError(
                f"--config {first.config} is of a run with --preset {saved['preset']}, and has a value for all that "
                f"--preset {first.preset} would set: leave that out"
            )
    preset = first.preset or saved.get("preset", "default")
    saved |= {"preset": preset} if preset in presets else {}
    default = checked(settings, {**presets.get(preset, {}), **saved}, f"--config {first.resume or first.config}")
    found = read_flags(settings, description, argv, default)
    if first.resume is not None:
        _require_free(found, settled(default), first.resume)
    return found


def asked_for(argv: Sequence[str], settings: type) -> set[str]:
    """Settings that the command line itself names: no preset, no config and no default gave them their values.

    Args:
        argv: the words after the script's name.
        settings: the dataclass whose fields are the flags.
    """
    flags = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    names = {field.name for field in fields(settings)}
    return {flag if flag in names else flag.removeprefix("no_") for flag in flags} & names


def require_folder_of(flag: str, file: Path | None) -> None:
    """Raises OSError if a file that is to be written at the end could not be, for want of its folder."""
    if file is not None and not file.absolute().parent.is_dir():
        raise OSError(f"{flag} {file}: there is no folder {file.parent}")


def _first_look(argv: list[str]) -> argparse.Namespace:
    """The flags that say what the defaults of all others are; None for those that are not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--resume", "--config", "--preset"):
        parser.add_argument(flag)
    parser.add_argument("--quick", action="store_true")
    try:
        found = parser.parse_known_args(argv)[0]
    except argparse.ArgumentError as error:
        needed = {"--resume": "the folder of a run", "--config": "the config.yaml of a run"}
        flag = str(error.argument_name)
        raise ValueError(f"{flag} needs {needed.get(flag, 'a name')}") from error
    if found.quick and found.preset not in (None, "quick"):
        raise ValueError(f"--quick is --preset quick: leave out that or --preset {found.preset}")
    found.preset = "quick" if found.quick else found.preset
    return found


def _replayed(config: Path, argv: list[str], settings: type) -> dict[str, Any]:
    """The settings of a saved config that are taken from there."""
    saved = read_config(config)
    allowed = {field.name for field in fields(settings)}
    unknown = [name for name in saved if name not in allowed]
    if unknown:
        raise ValueError(f"--config {config} names {unknown[0]!r}, which is no setting: take it out")
    told = any(word.replace("_", "-").endswith(TRUST.replace("_", "-")) for word in argv)
    warn_of_trust({name: value for name, value in saved.items() if not (told and name == TRUST)}, config)
    return {name: value for name, value in saved.items() if name not in NOT_REPLAYED}


def _require_free(found: object, default: object, resumed: str) -> None:
    """Raises ValueError if flags beside ``--resume`` change what results depend on."""
    names = [field.name for field in fields(cast("Any", found)) if field.name not in (*_FREE, "resume")]
    changed = [name for name in names if getattr(found, name) != getattr(default, name)]
    if changed:
        flags = " ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise ValueError(f"--resume goes on with the settings of {resumed}: leave out {flags}")
