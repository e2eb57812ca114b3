"""The commands of ``ffprune``, and the scripts that they are: one table, and how either is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "ffprune"
#: Where a wheel has the scripts; a checkout has the same folders at its top.
_INSTALLED = Path(__file__).parent / "scripts"
_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Command:
    """A script under the name that it has without a checkout.

    Attributes:
        script: its path in a checkout.
        help: what it does, in one line.
    """

    script: str
    help: str

    @property
    def file(self) -> Path:
        """The script on this machine: that of the wheel, or of the checkout that this file is part of."""
        installed = _INSTALLED / self.script
        return installed if installed.is_file() else _CHECKOUT / self.script


#: By name, in the order in which they are listed.
COMMANDS = {
    "search": Command("train/ppo.py", "find how much of each layer to keep; write the pruned model"),
    "allocate": Command(
        "evaluate/allocate.py", "write the model of a search at any sparsity, or the smallest one that loses no more"
    ),
    "recover": Command(
        "train/recover.py", "train the pruned model of a search towards the dense one, for some minutes"
    ),
    "perplexity": Command("evaluate/perplexity.py", "perplexity of a dense or pruned model"),
    "zero-shot": Command("evaluate/zero_shot.py", "zero-shot accuracy of a dense or pruned model"),
    "bench-serving": Command(
        "evaluate/bench_serving.py", "speed of a pruned model beside the dense one, where it is served"
    ),
    "export-gguf": Command("evaluate/export_gguf.py", "write a pruned model for llama.cpp"),
    "compare": Command("evaluate/compare.py", "methods against each other on one model"),
    "recover-compared": Command(
        "evaluate/recover_compared.py", "the methods of a comparison against each other after recovery"
    ),
    "tables": Command("evaluate/tables.py", "the four tables of the paper, its own figures beside those measured"),
    "compare-runs": Command("evaluate/compare_runs.py", "what several searches chose, in one table"),
    "frontier": Command(
        "evaluate/frontier.py", "perplexity, file size and speed against each other, pruned and quantized, in a picture"
    ),
    "windows": Command("evaluate/windows.py", "which windows of text a search would use, and for what"),
    "scale": Command("evaluate/scale.py", "what the search of a large model takes: memory and time"),
    "bench": Command("evaluate/bench.py", "what a step of the environment costs"),
    "families": Command("evaluate/families.py", "which model families can be measured, pruned and written"),
    "reward-study": Command("evaluate/reward_study.py", "how well a reward on little text ranks policies"),
    "preset-study": Command("evaluate/preset_study.py", "which settings of the search work"),
    "recovery-study": Command("evaluate/recovery_study.py", "which settings of a recovery work"),
    "search-study": Command("evaluate/search_study.py", "searches against each other where the best answer is known"),
}


def as_called(text: str, program: str) -> str:
    """A text with every ``python train/ppo.py`` and the like in it as the reader calls it.

    Args:
        text: such as the description of a script.
        program: the first word of the command line, which begins with ``ffprune`` where that was called.
    """
    if program.partition(" ")[0] != PROGRAM:
        return text
    for name, command in COMMANDS.items():
        text = re.sub(rf"python {re.escape(command.script)}\b", f"{PROGRAM} {name}", text)
    return text


def command_words(argv: Sequence[str]) -> list[str]:
    """The words that make this process once more.

    Args:
        argv: as a script sees them: its path, or ``ffprune`` and the name of a command in one, and its arguments.
    """
    program, *arguments = argv
    called = program.partition(" ")[0] == PROGRAM
    return [*(program.split(" ", 1) if called else ["python", program]), *arguments]
