"""What a program is doing now: a line when a phase begins, with its size, and one when it ends, with its time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def phase(name: str, size: str) -> Iterator[None]:
    """Logs the beginning of a piece of work and its end; a log file must tell a slow run from a dead one.

    Args:
        name: what is done, such as ``"damage curves"``. Both lines begin with it.
        size: how much of it there is, such as ``"4 windows of 1024 tokens"``.

    Yields:
        Nothing. Where the work fails there is no second line: the error says what happened.
    """
    logger.info("%s: %s ...", name, size)
    started = time.perf_counter()
    yield
    logger.info("%s: done in %.1f s", name, time.perf_counter() - started)


def windows_size(shape: tuple[int, ...]) -> str:
    """How a phase calls its text: ``windows_size((4, 1024))`` is ``"4 windows of 1024 tokens"``."""
    n, seq_len = shape
    return f"{n} window{'' if n == 1 else 's'} of {seq_len} tokens"
