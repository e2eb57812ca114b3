"""A folder of a comparison is filled: what is missing is measured, cell after cell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ffprune_env.comparison.cell import Cell
from ffprune_env.comparison.contest import ask, ask_final, search_and_measure, with_room
from ffprune_env.comparison.folder import ComparisonFolder
from ffprune_env.comparison.measuring import Measuring, load, prepare
from ffprune_env.comparison.plan import ANSWERING, Key, read_cell
from ffprune_env.comparison.rebuilt import REBUILDERS, rebuild_and_measure
from ffprune_env.comparison.subject import Subject
from ffprune_env.lm.identity import ChangedError, identity_of_versions
from ffprune_env.run.provenance import machine_facts

logger = logging.getLogger(__name__)

#: Flags that perplexities do not depend on: cells that differ in nothing else share a folder. What `auto` of --bos is
#: for the model is looked at when that is loaded.
NOT_SHARED = (
    "out", "sparsity", "methods", "seeds", "factor_storage", "device", "device_map", "max_memory", "data_dir", "limit",
    "held_out", "trust_remote_code", "bos", "batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class Filling:
    """What a folder is to hold.

    Attributes:
        measuring: what with.
        keys: the cells.
        evaluations: budget of every search at one sparsity.
    """

    measuring: Measuring
    keys: Sequence[Key]
    evaluations: int

    def unasked(self, key: Key, cell: Cell | None) -> bool:
        """Whether the final model of a cell is still to be asked; of every method the first seeds are."""
        if self.measuring.questions is None or (key.seed or 0) >= self.measuring.questions.seeds:
            return False
        return cell is None or cell.zero_shot is None

    def wanted(self, folder: ComparisonFolder) -> list[Key]:
        """The cells that the folder is to hold, without `ffn-only` where no attention can be cut: it is `uniform`."""
        dense, methods = folder.dense, {key.method for key in self.keys}
        cut = dense is None or any(unit["kind"] == "attention" for unit in dense["units"])
        return [key for key in self.keys if cut or key.method != "ffn-only" or "uniform" not in methods]

    def lacks(self, folder: ComparisonFolder) -> list[Key]:
        """The cells that the folder does not hold yet, or whose questions were not asked."""
        found = [(key, read_cell(folder, key, self.measuring.targets)) for key in self.wanted(folder)]
        return [key for key, cell in found if cell is None or self.unasked(key, cell)]


def fill(filling: Filling, folder: ComparisonFolder, complain: Callable[[str], object]) -> int:
    """Measures what the folder lacks. The model is loaded, and found to be the one of the folder, in any case.

    Args:
        filling: what it is to hold.
        folder: of the comparison.
        complain: called with a line for every method that could not do what it was asked.

    Returns:
        How many those are.

    Raises:
        ChangedError: the folder was filled with something else than there is now.
        OSError: something cannot be loaded.
        ValueError: a text is too short, or the model cannot be pruned.
    """
    if filling.measuring.questions is not None:
        folder.require_same("zero_shot.json", filling.measuring.questions.facts())
    adds = folder.dense is None or bool(filling.lacks(folder))
    folder.require_same_identity(identity_of_versions(), adds=adds)
    loaded = load(filling.measuring, folder)
    if not adds:
        logger.info("all is measured already")
        return 0
    subject = prepare(filling.measuring, folder, loaded)
    with subject.evaluator.sharing_dense_pass():
        return measure_missing(filling, folder, subject, complain)


def measure_missing(
    filling: Filling, folder: ComparisonFolder, subject: Subject, complain: Callable[[str], object]
) -> int:
    """Measures cell after cell what the folder lacks; returns how many methods could not do what they were asked."""
    failures, wanted, facts = 0, filling.wanted(folder), machine_facts(subject.evaluator.prunable.model)
    machine = {name: facts[name] for name in ("device", "devices", "threads", "hardware")}
    if len(wanted) < len(filling.keys):
        logger.info("no attention can be cut: ffn-only is uniform, and not measured again")
    for key in wanted:
        cell = read_cell(folder, key, filling.measuring.targets)
        unasked = filling.unasked(key, cell)
        if cell is not None and not unasked:
            continue
        logger.info("%s ...", key.title)
        try:
            if key.method in REBUILDERS:
                measured, model = rebuild_and_measure(subject, key.method, key.sparsity)
                cell = keep(folder, key, measured, machine) if cell is None else cell
                if unasked:
                    folder.add(ask(subject, cell, model))
                del model
            else:
                method = ANSWERING[key.method]
                if cell is None:
                    ask_method = partial(search_and_measure, subject, key.method, method)
                    measured = with_room(subject, partial(ask_method, key.sparsity, key.seed, filling.evaluations))
                    cell = keep(folder, key, measured, machine)
                if unasked:
                    folder.add(with_room(subject, partial(ask_final, subject, cell, method)))
        except ChangedError:  # another process has begun to fill the folder with something else: nothing will fit
            raise
        except (ValueError, RuntimeError) as error:  # one method that cannot do it is no reason to lose the others
            failures += 1
            complain(f"{key.title}: {error}")
    return failures


def keep(folder: ComparisonFolder, key: Key, cell: Cell, machine: dict[str, Any]) -> Cell:
    """Keeps a cell, with what it was measured on, and says what it holds."""
    cell = replace(cell, machine=machine)
    folder.add(cell)
    final = cell.test_ppl if cell.calibrated_test_ppl is None else cell.calibrated_test_ppl
    logger.info("%s: test PPL %.2f, in the end %.2f; %.0f s", key.title, cell.test_ppl, final, cell.seconds)
    return cell
