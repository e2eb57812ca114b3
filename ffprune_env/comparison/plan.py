"""What a comparison measures, and in which order: methods by name, at sparsities, with seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ffprune_env.comparison.cell import Cell
from ffprune_env.comparison.folder import ComparisonFolder
from ffprune_env.comparison.rebuilt import REBUILDERS
from ffprune_env.methods.ablations import ABLATIONS, PAPER_ABLATIONS
from ffprune_env.methods.registry import METHODS, Method, settings_of
from ffprune_env.methods.warm_start import WARM_STARTED

#: Methods that answer a problem, in the order of tables; the others rebuild weights.
ANSWERING: dict[str, Method] = METHODS | ABLATIONS | PAPER_ABLATIONS | WARM_STARTED


class Key(NamedTuple):
    """Which cell: a method, the sparsity that it is asked for, and the seed of what it draws, if it draws anything."""

    method: str
    sparsity: float
    seed: int | None

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.method} at σ = {self.sparsity:g}" + ("" if self.seed is None else f", seed {self.seed}")


def named_methods(names: Sequence[str], ablation: bool, sparsities: Sequence[float] = ()) -> list[str]:
    """The methods of a comparison, each once.

    Args:
        names: those asked for; none stands for all, but for one sparsity without those that answer several by one
            search: they would be another method again.
        sparsities: σ, each once.
        ablation: stand for ``ppo`` with one part changed at a time instead.

    Raises:
        ValueError: there is no such method.
    """
    for name in names:
        if name not in (*ANSWERING, *REBUILDERS):
            raise ValueError(f"unknown method {name!r}; allowed are {', '.join((*ANSWERING, *REBUILDERS))}")
    several = len(sparsities) > 1
    every = (*(name for name, method in METHODS.items() if several or method.answer_all is None), *REBUILDERS)
    return list(dict.fromkeys(names or (ABLATIONS if ablation else every)))


def plan(methods: Sequence[str], sparsities: Sequence[float], seeds: int) -> Iterator[Key]:
    """All cells: what needs no search first, then seed after seed, so that a stopped comparison is still a fair one.

    What one search answers is measured in a row: it would be lost with the process.

    Args:
        methods: their names, as :func:`named_methods` gives them.
        sparsities: σ, each once.
        seeds: how many times each search is run.
    """
    searching = [name for name in methods if name in ANSWERING and ANSWERING[name].searches]
    for sparsity in sparsities:
        yield from (Key(name, sparsity, None) for name in methods if name not in searching)
    for seed in range(seeds):
        for name in searching:
            if ANSWERING[name].answer_all:
                yield from (Key(name, sparsity, seed) for sparsity in sparsities)
        for sparsity in sparsities:
            yield from (Key(name, sparsity, seed) for name in searching if not ANSWERING[name].answer_all)


def read_cell(folder: ComparisonFolder, key: Key, sparsities: Sequence[float]) -> Cell | None:
    """A cell that was measured before, with the settings that the method has now; ChangedError if it had others.

    Args:
        folder: of the comparison.
        key: which cell.
        sparsities: all σ that are compared at, ascending: of one search for others it is another cell.
    """
    told = settings_of(ANSWERING[key.method], sparsities) if key.method in ANSWERING else None
    return folder.cell(*key, told)
