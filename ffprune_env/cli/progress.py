"""Phases on a terminal: a bar with a rate for each, and in the end a table of where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ffprune_env.lm.phases import Listener, LogLines, Phase, listening


class Bars:
    """Draws a bar for every phase under way; what has ended becomes a line above.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[Phase, TaskID] = {}

    def begin(self, phase: Phase) -> None:
        """Adds a bar; it pulses where nobody counts."""
        title = f"{'  ' * phase.depth}{phase.name}"
        self._tasks[phase] = self.progress.add_task(title, total=phase.total or None, rate="", note=phase.size)

    def advance(self, phase: Phase) -> None:
        """Moves it."""
        speed = self.progress.tasks[self.progress.task_ids.index(self._tasks[phase])].speed
        rate = f"{speed:.1f}/s  " if speed and speed >= 1 else f"{1 / speed:.1f} s each  " if speed else ""
        self.progress.update(self._tasks[phase], completed=phase.done, rate=rate, note=phase.note or phase.size)

    def end(self, phase: Phase) -> None:
        """Takes it away, and says how long it took."""
        self.progress.remove_task(self._tasks.pop(phase))
        if not phase.depth:
            self.progress.console.print(
                f"{phase.name}: {phase.size}, {phase.seconds:.1f} s", style="dim", highlight=False
            )


class Times:
    """Keeps how long phases took, and tells another listener of them.

    Args:
        listener: who shows them.

    Attributes:
        seconds: by name, of phases that are no part of another, in the order in which they were first seen.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def begin(self, phase: Phase) -> None:
        """Hands it on."""
        self._listener.begin(phase)

    def advance(self, phase: Phase) -> None:
        """Hands it on."""
        self._listener.advance(phase)

    def end(self, phase: Phase) -> None:
        """Adds the time, and hands it on."""
        if not phase.depth:
            self.seconds[phase.name] = self.seconds.get(phase.name, 0.0) + phase.seconds
        self._listener.end(phase)

    def table(self) -> Table:
        """Where the time went since this began to listen; what no phase tells of is the last row but one."""
        total = time.perf_counter() - self._began
        table = Table(title="where the time went")
        for column in ("phase", "seconds", "share"):
            table.add_column(column, justify="left" if column == "phase" else "right")
        other = max(0.0, total - sum(self.seconds.values()))
        for name, seconds in {**self.seconds, "everything else": other}.items():
            table.add_row(name, f"{seconds:.1f}", f"{seconds / total:.0%}")
        table.add_section()
        table.add_row("all", f"{total:.1f}", "100%")
        return table


@contextmanager
def showing_phases(console: Console) -> Iterator[Times]:
    """Shows phases on a console: bars on a terminal, lines in a log file.

    Yields:
        How long they took.
    """
    if not console.is_terminal:
        times = Times(LogLines())
        with listening(times):
            yield times
        return
    bars = Bars(console)
    times = Times(bars)
    with bars.progress, listening(times):
        yield times
