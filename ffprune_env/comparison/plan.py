"""What a comparison measures, and in which order: methods by name, at sparsities, with seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ffprune_env.comparison.cells import Cell, ComparisonFolder
from ffprune_env.comparison.contest import REBUILDERS
from ffprune_env.methods.ablations import ABLATIONS
from ffprune_env.methods.registry import METHODS, Method, settings_of

#: Methods that answer a problem, in the order of tables; the others rebuild weights.
ANSWERING: dict[str, Method] = METHODS | ABLATIONS


class Key(NamedTuple):
    """Which cell: a method, the sparsity that it is asked for, and the seed of what it draws, if it draws anything."""

    method: str
    sparsity: float
    seed: int | None

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.method} at σ = {self.sparsity:g}" + ("" if self.seed is None else f", seed {self.seed}")


def named_methods(names: Sequence[str], ablation: bool) -> list[str]:
    """The methods of a comparison, each once.

    Args:
        names: those asked for; none stands for all.
        ablation: stand for ``ppo`` with one part changed at a time instead.

    Raises:
        ValueError: there is no such method.
    """
    for name in names:
        if name not in (*ANSWERING, *REBUILDERS):
            raise ValueError(f"unknown method {name!r}; allowed are {', '.join((*ANSWERING, *REBUILDERS))}")
    return list(dict.fromkeys(names or (ABLATIONS if ablation else (*METHODS, *REBUILDERS))))


def plan(methods: Sequence[str], sparsities: Sequence[float], seeds: int) -> Iterator[Key]:
    """All cells: what needs no search first, then seed after seed, so that a stopped comparison is still a fair one.

    Args:
        methods: their names, as :func:`named_methods` gives them.
        sparsities: σ, each once.
        seeds: how many times each search is run.
    """
    searching = [name for name in methods if name in ANSWERING and ANSWERING[name].searches]
    for sparsity in sparsities:
        yield from (Key(name, sparsity, None) for name in methods if name not in searching)
    for seed in range(seeds):
        for sparsity in sparsities:
            yield from (Key(name, sparsity, seed) for name in searching)


def read_cell(folder: ComparisonFolder, key: Key) -> Cell | None:
    """A cell that was measured before, with the settings that the method has now; ChangedError if it had others."""
    return folder.cell(*key, settings_of(ANSWERING[key.method]) if key.method in ANSWERING else None)
