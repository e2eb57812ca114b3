"""One way to write: what is written takes its name when all of it is there, so nobody ever reads a part."""

from __future__ import annotations

import itertools
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

#: What the names of files and folders begin with that are being written, or were when their process was killed.
WRITING = ".writing-"
# Bytes of a name that may be 255 long in all; the end is kept, since libraries go by the suffix.
_HOST_LENGTH, _NAME_LENGTH = 32, 150
_counter = itertools.count()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Puts a file or a folder in the place of what is there now, in one move, or leaves that as it is.

    Every call has a scratch path of its own, so that processes and threads that write the same do not mix: the last to
    finish wins. What a killed process of this machine left of the same target is removed first. A file keeps the
    permissions of the one that it replaces; one behind a link is replaced, not the link. A device or a pipe, such as
    ``/dev/stdout``, is written to directly.

    Args:
        path: the target; the folder that holds it must exist. A folder can only replace an empty one.

    Yields:
        The path to write to, with the suffix of the target; nothing is there yet. It is moved to the target if the
        block ends well and removed if it raises.

    Raises:
        OSError: nothing was written, or what was written cannot be moved.
    """
    if _is_stream(Path(path)):
        yield Path(path)
        return
    target = Path(path).resolve()
    with scratch_beside(target) as scratch:
        yield scratch
        if target.is_file() and scratch.is_file():
            shutil.copymode(target, scratch)
        os.replace(scratch, target)


@contextmanager
def scratch_beside(path: str | Path) -> Iterator[Path]:
    """A path beside a target for what is needed on the way to it, and removed in the end.

    Every call has one of its own. What a killed process of this machine left beside the same target is removed first.

    Args:
        path: the target; the folder that holds it must exist.

    Yields:
        The path to write to, with the suffix of the target; nothing is there yet.
    """
    target = Path(path).resolve()
    with suppress(OSError):  # a folder that cannot be listed can be written to
        _remove_orphans(target)
    scratch = target.with_name(_name(os.getpid(), next(_counter), target.name))
    try:
        yield scratch
    finally:
        _remove(scratch)


def remove_unfinished(folder: Path, pattern: str = "") -> None:
    """Removes what was never finished in a folder that no other process writes to.

    Args:
        folder: the folder.
        pattern: which folders inside it are meant, such as ``*/``; the empty one means the folder itself.
    """
    for left in folder.glob(f"{pattern}{WRITING}*"):
        _remove(left)


def _is_stream(path: Path) -> bool:
    """Whether a path is no place in a folder: a device, a pipe, or the system's name of an open file."""
    where = path.absolute()
    named = where.parent in (Path("/dev"), Path("/dev/fd")) or where.parts[1:2] == ("proc",)
    return named or (path.exists() and not path.is_file() and not path.is_dir())


def _name(pid: int | str, number: int | str, target: str) -> str:
    """The name of a scratch path, which ends as its target does."""
    host = "".join(c if c.isalnum() else "_" for c in platform.node())[:_HOST_LENGTH]
    ending = os.fsdecode(os.fsencode(target)[-_NAME_LENGTH:])
    return f"{WRITING}{host}-{pid}-{number}-{ending}"


def _remove_orphans(target: Path) -> None:
    """Removes what processes of this machine that live no more have written of a target."""
    before, _, after = _name("/", "/", target.name).partition("/-/")  # no name holds a slash
    ours = re.compile(re.escape(before) + r"(\d+)-\d+" + re.escape(after))
    for entry in os.scandir(target.parent):
        match = ours.fullmatch(entry.name)
        if match is not None and not psutil.pid_exists(int(match[1])):
            _remove(Path(entry.path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
