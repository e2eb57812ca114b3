"""A folder that one process at a time may fill: claimed before work begins, and gone again if nothing came of it."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import filelock

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_ATTEMPTS = 10


class TakenError(ValueError):
    """A folder holds something already, or another process works on it."""


class FolderClaim:
    """The lock on a folder, which the system takes off when the process ends, however it ends.

    Args:
        path: the folder.
        nothing: how the names of files begin that do not count: what a process leaves that could not begin.
    """

    def __init__(self, path: Path, nothing: tuple[str, ...] = ()) -> None:
        self.path = path
        self._nothing = (_LOCK, *nothing)
        self._lock = filelock.FileLock(path / _LOCK, blocking=False)
        self._made: list[Path] = []  # folders that were not there before, the innermost first

    @property
    def is_free(self) -> bool:
        """Whether the folder holds nothing that counts."""
        try:
            return all(file.name.startswith(self._nothing) for file in self.path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return True

    def lock(self, named_here: bool = False) -> None:
        """Makes the folder, if there is none, and makes it this process's own.

        Args:
            named_here: whether nobody else has a use for a folder of this name, so that it may go in any case.

        Raises:
            TakenError: another process works on it.
            OSError: the folder cannot be made or written to.
        """
        absent = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        for attempt in range(_ATTEMPTS):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
                break
            except filelock.Timeout:
                raise TakenError(f"another process works on run folder {self.path}: wait for it, or end it") from None
            except OSError as error:
                # Another process may give the folder up while this one looks at it.
                if not isinstance(error, FileNotFoundError | FileExistsError) or attempt == _ATTEMPTS - 1:
                    raise OSError(f"run folder {self.path} cannot be written to: {error}") from error
        self._made = absent if absent or not named_here else [self.path]

    def unlock(self) -> None:
        """Gives the folder back before the process ends."""
        self._lock.release()

    def give_up(self) -> None:
        """Gives the folder back; where it holds nothing that counts, nothing of it is left."""
        if self._lock.is_locked and self.is_free:
            for file in self.path.iterdir() if self.path.is_dir() else ():
                with suppress(OSError):
                    file.unlink()
            self.unlock()
            for folder in self._made:
                with suppress(OSError):  # somebody else has put something there meanwhile
                    folder.rmdir()
        self.unlock()
