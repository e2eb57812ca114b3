"""What timing on a device takes: waiting for it, and knowing how much memory was needed."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

# Linux tells and forgets a high-water mark of memory here.
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def high_water_mark() -> int:
    """The most bytes of main memory that this process ever held, or since that was last forgotten."""
    if _STATUS.exists():  # on Linux ru_maxrss begins with what the parent held
        (line,) = (x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def most_memory(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a run needs beyond what is held before it; 0 where the system does not say.

    Args:
        run: what is called, once.
        device: whose memory is meant; of a CPU the process's.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, ValueError):
        _CLEAR.write_text("5")  # the high-water mark falls to what is held now
        before = int(psutil.Process().memory_info().rss)
        run()
        return high_water_mark() - before
    return 0
