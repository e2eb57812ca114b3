"""What a program is doing now, how far it is, and how long it took; whoever wants to show it listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger(__name__)

# Seconds between two lines about one phase in a log.
_PAUSE_S = 30.0


@dataclass(eq=False)
class Phase:
    """A piece of work that takes a while.

    Attributes:
        name: what is done, such as ``"damage curves"``.
        size: how much of it there is, in words, such as ``"4 windows of 1024 tokens"``.
        total: steps that it takes; 0 if nobody counts them.
        depth: phases that it is a part of.
        done: steps that are done.
        note: what there is to say of the last step.
        began: when, by :func:`time.perf_counter`.
        seconds: how long it took; 0 until it has ended.
    """

    name: str
    size: str
    total: int
    depth: int
    done: int = 0
    note: str = ""
    began: float = 0.0
    seconds: float = 0.0


class Listener(Protocol):
    """Who shows phases."""

    def begin(self, phase: Phase) -> None:
        """A phase begins."""

    def advance(self, phase: Phase) -> None:
        """A step of it is done."""

    def end(self, phase: Phase) -> None:
        """It has ended, well or not."""


class Advance(Protocol):
    """What a phase gives to who does the work."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """So many more steps are done."""


class LogLines:
    """Logs a line when a phase begins, with its size, and one when it ends, with its time.

    A log file must tell a slow run from a dead one: in between there is a line every half a minute, where steps are
    counted.
    """

    def __init__(self) -> None:
        self._told = 0.0

    def begin(self, phase: Phase) -> None:
        """Logs the name and the size."""
        logger.info("%s: %s ...", phase.name, phase.size)
        self._told = time.perf_counter()

    def advance(self, phase: Phase) -> None:
        """Logs how far the phase is, now and then."""
        if time.perf_counter() - self._told >= _PAUSE_S:
            self._told = time.perf_counter()
            of = f" of {phase.total}" if phase.total else ""  # how many there will be is not always known
            logger.info("%s: %d%s  %s", phase.name, phase.done, of, phase.note)

    def end(self, phase: Phase) -> None:
        """Logs the time."""
        note = f"  {phase.note}" if phase.note else ""
        logger.info("%s: done in %.1f s%s", phase.name, phase.seconds, note)


_listener: Listener = LogLines()
_open: list[Phase] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, a listener is told of all phases, in the place of the one before."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@contextmanager
def phase(name: str, size: str, total: int = 0) -> Iterator[Advance]:
    """Tells of the beginning of a piece of work, its steps and its end.

    Args:
        name: what is done, such as ``"damage curves"``.
        size: how much of it there is, such as ``"4 windows of 1024 tokens"``.
        total: steps that it takes, if they are counted.

    Yields:
        What to call after every step. Where the work fails its end is not told: the error says what happened.
    """
    this = Phase(name, size, total, depth=len(_open), began=time.perf_counter())

    def advance(steps: int = 1, note: str = "") -> None:
        this.done, this.note = this.done + steps, note
        _listener.advance(this)

    _open.append(this)
    _listener.begin(this)
    try:
        yield advance
        this.seconds = time.perf_counter() - this.began
        _listener.end(this)
    finally:
        _open.remove(this)


def windows_size(shape: tuple[int, ...]) -> str:
    """How a phase calls its text: ``windows_size((4, 1024))`` is ``"4 windows of 1024 tokens"``.

    Of one token each they are openings (:mod:`ffprune_env.texts.openings`), and called so.
    """
    n, seq_len = shape
    what, length = ("opening", "") if seq_len == 1 else ("window", f" of {seq_len} tokens")
    return f"{n} {what}{'' if n == 1 else 's'}{length}"
