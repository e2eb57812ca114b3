"""Models in processes of their own, which take turns: a machine whose speed drifts slows all alike."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ffprune_env.lm.phases import phase
from ffprune_env.serving import worker
from ffprune_env.serving.worker import Job


@dataclass(frozen=True)
class Timing:
    """One thing that was timed, of one model.

    Attributes:
        what: ``prefill`` or ``decode``.
        batch: sequences at once.
        seconds: of each round, by the clock or of all threads together.
    """

    what: str
    batch: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """What one model took.

    Attributes:
        timings: of everything that was timed, in order.
        weights: bytes.
        cache: bytes for one token; None where the server does not tell.
    """

    timings: tuple[Timing, ...]
    weights: float
    cache: float | None


class Worker:
    """A process that serves one model.

    Args:
        name: of the model, for messages.
        command: the Python that runs it.
        backend: of :data:`~ffprune_env.serving.worker.BACKENDS`.
        source: what it loads.
        job: what is asked for.
        said: file for what the process says beside its answers: a pipe that nobody reads would fill.
    """

    def __init__(self, name: str, command: Path, backend: str, source: Path, job: Job, said: IO[str]) -> None:
        self.name = name
        words = [str(command), str(Path(worker.__file__)), backend, str(source), json.dumps(asdict(job))]
        places = os.pathsep.join(filter(None, (str(Path(worker.__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        threads = {"OMP_NUM_THREADS": str(job.threads)}
        # Only a Python that has ffprune's own requirements is to find ffprune.
        own = {"PYTHONPATH": places} if backend == "transformers" else {}
        self._said = said
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            env={**os.environ, **threads, **own},
        )  # fmt: skip

    def ask(self, what: str) -> dict[str, Any]:
        """What the process answers; see :mod:`~ffprune_env.serving.worker`.

        Raises:
            ValueError: it died; the message ends with why, or with what it said last.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):  # it has died, and may have said why
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
        line = process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"died": self._last_words()}
        if "died" in answer:
            raise ValueError(f"the process of the {self.name} model died: {answer['died']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._said.seek(0)
        return (self._said.read().strip().splitlines() or ["it said nothing"])[-1]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def in_turns(
    command: Path, backend: str, sources: Mapping[str, Path], job: Job, rounds: int, clock: str
) -> dict[str, Measured]:
    """Times models in turns, after a round that is not counted.

    Args:
        command: the Python that runs them.
        backend: of :data:`~ffprune_env.serving.worker.BACKENDS`.
        sources: what is loaded, by the name of the model.
        job: what is asked for.
        rounds: how often everything is timed.
        clock: ``wall``, or ``cpu`` for the time of all threads together.

    Returns:
        What each model took, by its name.

    Raises:
        ValueError: a process died.
    """
    whats = [(what, batch) for what in ("prefill", "decode") for batch in job.batches]
    seconds: dict[str, dict[tuple[str, int], list[float]]] = {name: {x: [] for x in whats} for name in sources}
    with ExitStack() as stack:
        served = {name: stack.enter_context(_served(name, command, backend, x, job)) for name, x in sources.items()}
        threads = f"{job.threads} thread{'' if job.threads == 1 else 's'}"
        with phase(f"{backend}, {threads}", f"{rounds + 1} rounds of {len(sources)} models", rounds + 1) as advance:
            for i in range(rounds + 1):
                for what, batch in whats:
                    for name, process in served.items():
                        took = process.ask(f"{what} {batch}")[clock]
                        if i:
                            seconds[name][what, batch].append(took)
                advance()
        memory = {name: process.ask("memory") for name, process in served.items()}
    return {
        name: Measured(
            tuple(Timing(what, batch, tuple(times)) for (what, batch), times in of_model.items()),
            memory[name]["weights"],
            memory[name]["cache"],
        )
        for name, of_model in seconds.items()
    }


@contextmanager
def _served(name: str, command: Path, backend: str, source: Path, job: Job) -> Iterator[Worker]:
    with tempfile.TemporaryFile("w+") as said:
        process = Worker(name, command, backend, source, job, said)
        try:
            yield process
        finally:
            process.close()
