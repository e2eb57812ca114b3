"""The files of a run: written whole or not at all, in strict JSON (docs/design.md, 7)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ffprune_env.budget.arrays import IntArray
from ffprune_env.lm.identity import ChangedError, Identity, require_same
from ffprune_env.lm.one_line import one_line
from ffprune_env.lm.replacing import WRITING, remove_unfinished, replacing
from ffprune_env.pruning.stored_order import ORDER, order_from_json
from ffprune_env.run.claim import FolderClaim, TakenError
from ffprune_env.run.config import NOT_REPLAYED, not_a_run, read_config
from ffprune_env.run.provenance import provenance
from ffprune_env.run.strict_json import strict_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_IDENTITY = "identity.json"
# What a process leaves that could not begin: no run, and a folder that is free.
_UNBEGUN = (WRITING, _IDENTITY, ORDER)


class RunFolder:
    """``runs/<name>/``: config, manifest, samples, best policy, checkpoints, events and plots of one search.

    Args:
        path: the folder; made by :meth:`claim`, not before.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples.jsonl"
        self.starts = self.path / "start.json"
        self.costs = self.path / "cost.jsonl"
        self.tensorboard = self.path / "tb"
        self._claim = FolderClaim(self.path, _UNBEGUN)

    @classmethod
    def claim_next(cls, path: Path) -> RunFolder:
        """Claims a folder of this name or, where that is taken, of this name with -2, -3, ... behind it.

        Raises:
            OSError: it cannot be made.
        """
        for i in count(1):
            run = cls(path if i == 1 else path.with_name(f"{path.name}-{i}"))
            with suppress(TakenError):
                run.claim(named_here=True)
                break
        if run.path != path:
            logger.info("%s is taken: this run goes to %s", path, run.path)
        return run

    def claim(self, named_here: bool = False) -> None:
        """Makes the folder, and makes it this process's own, before there is anything to write.

        Args:
            named_here: whether the user did not choose the folder.

        Raises:
            TakenError: it holds another run, or another process works on it.
            OSError: it cannot be made.
        """
        self.require_free()
        self._claim.lock(named_here)
        try:
            self.require_free()
        except BaseException:
            self.unlock()
            raise

    def give_up(self) -> None:
        """Gives the folder back; if no run was begun in it, nothing of it is left."""
        self._claim.give_up()

    def require_free(self) -> None:
        """Raises TakenError if the folder holds anything (one folder, one run), OSError if it cannot be made."""
        if not self._claim.is_free:
            raise TakenError(
                f"run folder {self.path} already holds another run: choose another with --run, or go on with that one "
                f"by --resume {self.path}"
            )
        nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        writable = nearest.is_dir() and os.access(nearest, os.W_OK)
        if not writable and nearest.exists():  # another process may have given it up meanwhile
            raise OSError(f"run folder {self.path} cannot be made: {nearest} is not a folder that can be written to")

    def begin(self, config: Mapping[str, Any], identity: Identity, order: Mapping[str, str], **manifest: Any) -> None:
        """Writes ``identity.json``, ``order.json``, ``config.yaml`` and ``manifest.json`` into a claimed folder.

        Args:
            config: every setting of the run; plain values. What is said every time is not written.
            identity: what the figures of the run depend on.
            order: of heads and channels, see :mod:`ffprune_env.pruning.stored_order`.
            **manifest: what to record beside versions, platform, revision and command line.
        """
        self.write_json(_IDENTITY, identity)
        self.write_json(ORDER, order)
        # The config makes it a run that can be gone on with; by then it is known what with.
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in config.items()}
        kept = {name: value for name, value in plain.items() if name not in NOT_REPLAYED}
        self._write("config.yaml", yaml.safe_dump(kept, sort_keys=False))
        self.write_json("manifest.json", {**provenance(), **manifest})
        self.make_folders()

    def make_folders(self) -> None:
        """Makes the folders that a run fills."""
        for folder in (self.checkpoints, self.tensorboard, self.path / "plots"):
            folder.mkdir(parents=True, exist_ok=True)

    def unlock(self) -> None:
        """Gives the folder back before the process ends."""
        self._claim.unlock()

    def reopen(self) -> None:
        """Locks a folder that a run has begun, and clears what was never finished.

        Raises:
            ValueError: no run was begun there, its manifest is damaged, or another process works on it.
        """
        if not (self.path / "config.yaml").is_file():
            raise ValueError(not_a_run(self.path))
        self._claim.lock()
        self.read_json("manifest.json")  # what is wrong with it is said before a model is loaded
        self.make_folders()
        for pattern in ("", "*/", "*/*/"):
            remove_unfinished(self.path, pattern)

    def require_same(
        self,
        now: Identity,
        model: str = "",
        texts: Mapping[str, str] | None = None,
        advice: str = "start a new run, without --resume",
    ) -> None:
        """Raises ChangedError, in one line, if the run was begun with something else than there is now.

        Args:
            now: all that is known of that, or a part of it.
            model: name of the model, for the message.
            texts: names of the texts by use, for the message.
            advice: what to do, for the message.
        """
        require_same(self.identity(), now, f"{self.path} was begun", advice, model, texts)

    def identity(self) -> dict[str, str]:
        """What the figures of the run depend on; ChangedError if that was not recorded, as by earlier versions."""
        found = self.read_json(_IDENTITY)
        if found is None:
            raise ChangedError(
                f"{self.path} holds no {_IDENTITY}, and so does not say what model and texts it measured: nothing can "
                f"be added to it or compared with it, start a new run"
            )
        return found

    def order(self, model: PreTrainedModel, advice: str = "start a new run, without --resume") -> list[IntArray] | None:
        """The order of heads and channels that the run measured; None if it does not say, as those of before.

        Args:
            model: what it is to fit, as it was loaded.
            advice: what to do, for the message.

        Raises:
            ValueError: it is not an order of this model.
        """
        found = self.read_json(ORDER)
        if found is None:
            return None
        return order_from_json(found, model, self.path / ORDER, advice, self.read_config().get("heads", "single"))

    def require_order(self, model: PreTrainedModel) -> list[IntArray]:
        """The order that the run measured; ValueError if it does not say, so that it cannot be gone on with."""
        order = self.order(model)
        if order is None:
            raise ValueError(
                f"{self.path} holds no {ORDER}, and so does not say which heads and channels it measured: start a new "
                f"run, without --resume"
            )
        return order

    def dtype(self) -> str:
        """The number format that ``auto`` came to where the run was made; it may come to another one elsewhere."""
        dtype = self.identity()["dtype"].removeprefix("torch.")
        return dtype if dtype.isalnum() else "auto"

    def read_config(self) -> dict[str, Any]:
        """The settings that the run was begun with."""
        return read_config(self.path / "config.yaml")

    def warn_of_changes(self, facts: Mapping[str, Any]) -> None:
        """Says in what a run that goes on differs from how it was begun, as far as its manifest tells."""
        begun = self.read_json("manifest.json") or {}
        changed = [name for name, value in facts.items() if name in begun and begun[name] != value]
        if changed:
            was, now = ({name: x[name] for name in changed} for x in (begun, facts))
            logger.warning("the run was begun with %s, now it has %s: it may not find its samples again", was, now)

    def events(self) -> list[Path]:
        """The files of TensorBoard events that there are."""
        return list(self.tensorboard.rglob("events.out.tfevents.*"))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Reads what :meth:`write_json` wrote; None if there is no such file.

        Raises:
            ValueError: it is not an object.
        """
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self.path / name} is damaged: {one_line(error)}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.path / name} is damaged: an object is needed")
        return content

    def part(self, sparsity: float) -> RunFolder:
        """A folder inside this one, for what a run of several sparsities leaves of one of them."""
        inside = RunFolder(part_of(self.path, sparsity))
        (inside.path / "plots").mkdir(parents=True, exist_ok=True)
        return inside

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replaces a file by strict JSON, in one move."""
        self._write(name, strict_json(content, indent=2) + "\n")

    def save_plot(self, name: str, figure: Figure) -> None:
        """Replaces ``plots/<name>.png``, in one move."""
        with replacing(self.path / "plots" / f"{name}.png") as scratch:
            figure.savefig(scratch, dpi=110)

    def _write(self, name: str, text: str) -> None:
        with replacing(self.path / name) as scratch:
            scratch.write_text(text, encoding="utf-8")


def part_of(run: Path, sparsity: float) -> Path:
    """Where a run of several sparsities leaves what is of one of them: ``s20`` for 0.2."""
    return run / f"s{100 * sparsity:g}"
