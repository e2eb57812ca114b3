"""What work on a model costs: whatever runs it says how much text went through, and whoever wants to know counts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import torch


@dataclass(frozen=True)
class Cost:
    """What some work took. Costs add up.

    Text that an evaluator answers about from its memory does not go through the model, and is not in it. Nor are the
    few tokens on which it is tried how a model is wired.

    Attributes:
        forward_passes: windows of text that went through the model. One that went through some of its layers is as
            large a part of a pass.
        backward_passes: windows whose gradient went back through it; each is a forward pass, too.
        forward_tokens: tokens of the forward passes: the text that the model read.
        backward_tokens: tokens of the backward passes.
        seconds: wall time.
        device_seconds: wall time times the devices that were held for it: the GPUs that the model is spread over, or
            the workers that measure.
    """

    forward_passes: float = 0.0
    backward_passes: float = 0.0
    forward_tokens: int = 0
    backward_tokens: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        """What is left without a part of it."""
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def device_hours(self) -> float:
        """Hours that a single device would have been held."""
        return self.device_seconds / 3600


class Tally:
    """Adds up what :func:`count_forward` and the like tell, and the time since it began.

    Args:
        devices: that are held meanwhile.
    """

    def __init__(self, devices: int = 1) -> None:
        self._devices = devices
        self._counted = Cost()
        self._began = time.perf_counter()
        self._seconds: float | None = None

    @property
    def cost(self) -> Cost:
        """All so far."""
        seconds = time.perf_counter() - self._began if self._seconds is None else self._seconds
        return self._counted + Cost(seconds=seconds, device_seconds=seconds * self._devices)

    def add(self, cost: Cost) -> None:
        """Adds what the model read; time is the tally's own."""
        self._counted += Cost(cost.forward_passes, cost.backward_passes, cost.forward_tokens, cost.backward_tokens)

    def stop(self) -> None:
        """Time goes on without it."""
        self._seconds = time.perf_counter() - self._began


_open: list[Tally] = []


@contextmanager
def counting(devices: int = 1) -> Iterator[Tally]:
    """Inside, what goes through models in this process is counted; one tally inside another counts for both.

    Args:
        devices: that are held meanwhile.
    """
    tally = Tally(devices)
    _open.append(tally)
    try:
        yield tally
    finally:
        tally.stop()
        _open.remove(tally)


def count(cost: Cost) -> None:
    """Tells whoever counts of what went through a model in another process; its time is not added."""
    for tally in _open:
        tally.add(cost)


def count_forward(windows: torch.Tensor, part: float = 1.0, pass_tokens: int | None = None) -> None:
    """Tells whoever counts that windows went through a model.

    Args:
        windows: int64 [n, seq_len].
        part: of its layers.
        pass_tokens: tokens that count as a pass: of openings, those of a window that they are seen beside. None: those
            of a window.
    """
    tokens = windows.numel() * part
    count(Cost(forward_passes=tokens / (pass_tokens or windows.shape[1]), forward_tokens=round(tokens)))


def count_backward(windows: torch.Tensor) -> None:
    """Tells whoever counts that the gradient of windows, int64 [n, seq_len], went back through a model."""
    count(Cost(backward_passes=len(windows), backward_tokens=windows.numel()))
