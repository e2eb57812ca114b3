"""How a script ends that measures for long: whatever stops it, what was measured by then is printed and written."""

from __future__ import annotations

from collections.abc import Sized
from types import TracebackType
from typing import Self

from ffprune_env.cli.consoles import fail, say


class Ending:
    """A context that Ctrl-C, bad input, a full disk or a lack of memory ends, but not the script; each is one line.

    Args:
        measured: where what is measured is put; while it is empty, bad input is an error of who called.

    Attributes:
        code: exit code of the script: 0, 1 if something failed, 2 if nothing began, 130 after Ctrl-C.
    """

    def __init__(self, measured: Sized) -> None:
        self.measured, self.code = measured, 0

    def __enter__(self) -> Self:
        """Begins to listen."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Takes what the script can end well after; everything else goes on up."""
        if isinstance(error, KeyboardInterrupt):
            say("interrupted; what was measured is reported")
            self.code = 130
        elif isinstance(error, RuntimeError):  # no memory
            self.code = fail(error, 1)
        elif isinstance(error, ValueError | OSError):
            self.code = fail(error, 1 if self.measured else 2)
        else:
            return False
        return True
