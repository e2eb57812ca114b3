"""The folder that a comparison is kept in, one file per cell: what is there is not measured again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from ffprune_env.budget.arrays import IntArray
from ffprune_env.comparison.cell import Cell, Comparison, cell_from_json, cell_name
from ffprune_env.comparison.policies import KeptPolicies
from ffprune_env.lm.identity import OF_VERSIONS, ChangedError, Identity, identity_of_settings, require_same
from ffprune_env.lm.replacing import replacing
from ffprune_env.pruning.stored_order import ORDER, order_from_json
from ffprune_env.run.strict_json import as_measured, strict_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_IDENTITY = "identity.json"
#: What a folder was made with that was filled before there was such a setting.
BEFORE = {"start": "own", "ridge_scale": "relative", "heads": "single", "reward": "ppl", "openings": 0}
# What figures do not depend on, and folders of before hold; and by which name a dtype was asked for: which it was is
# part of the model's identity.
_NOT_COMPARED = {"batch_size", "dtype"}


class ComparisonFolder:
    """What a comparison has measured so far, safe from Ctrl-C: ``settings.json``, ``dense.json`` and ``cells/``.

    Nothing is written before there is something to keep. Two processes may fill one folder if they do not work on the
    same cells and measure with the same; that is looked at again whenever something is written, since both may have
    begun while the folder was empty. ``identity.json`` says what model, texts, settings and code all of it was measured
    with, and so do the dense model's measurements and every cell.

    Args:
        path: the folder; made if there is none.
        settings: what all cells have in common.

    Raises:
        ChangedError: the folder was made with other settings; the message names one that differs.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(strict_json(settings))
        self.require_same("settings.json", self.settings)
        self.identity: dict[str, str] = self._read(_IDENTITY) or {}

    def require_same(self, name: str, settings: Mapping[str, Any]) -> None:
        """Raises ChangedError if a file of settings is there and differs."""
        made_with = self._read(name)
        for key in (settings.keys() | (made_with or settings).keys()) - _NOT_COMPARED:
            there, asked = (of.get(key, BEFORE.get(key)) for of in (made_with or settings, settings))
            if there != asked:
                raise ChangedError(f"{self.path} was made with {key} {there!r}, not {asked!r}: give another --out")

    def require_same_identity(
        self, now: Identity, model: str = "", texts: Mapping[str, str] | None = None, adds: bool = True
    ) -> None:
        """Raises ChangedError, in one line, if the folder was filled with something else than there is now.

        In a new folder what there is now becomes what the folder is filled with.

        Args:
            now: all that figures depend on, or a part of it.
            model: name of the model, for the message.
            texts: names of the texts by use, for the message.
            adds: whether anything will be measured. Where nothing is, other versions are no error, and only said.
        """
        if not (self.path / _IDENTITY).exists():
            if (self.path / "settings.json").exists():
                raise ChangedError(
                    f"{self.path} holds no {_IDENTITY}, and so does not say what model and texts it was measured with: "
                    f"nothing can be added to it, give another --out"
                )
            self.identity |= {**identity_of_settings(self.settings), **now}
            return
        since, advice = f"{self.path} was begun", "give another --out"
        try:
            require_same(self.identity, now, since, advice, model, texts)
        except ChangedError as error:
            if adds or any(name not in OF_VERSIONS for name in now):
                raise
            logger.warning("nothing is measured, and what is there is of another version: %s", error)

    def cell(
        self, method: str, sparsity: float, seed: int | None, settings: Mapping[str, Any] | None = None
    ) -> Cell | None:
        """A cell that was measured before, if it was.

        Args:
            method: its name.
            sparsity: σ.
            seed: of what it drew, if anything.
            settings: what the method is told now beside the settings of the comparison; None does not compare that.

        Raises:
            ChangedError: it was measured with other settings, or with another model, text or code than the folder, or
                is another cell.
            ValueError: it cannot be read.
        """
        name = cell_name(method, sparsity, seed, (settings or {}).get("targets", ()))
        found = self._read(name)
        try:
            cell = None if found is None else cell_from_json(found)
        except (KeyError, TypeError) as error:
            raise self._damaged(name, error) from error
        if cell is None:
            return None
        remedy = "remove it to measure it again, or give another --out"
        holds = cell.file
        if holds != name:  # copied or renamed by hand
            raise ChangedError(f"{self.path / name} holds what belongs to {holds}: {remedy}")
        if self.identity:
            require_same(cell.identity or {}, self.identity, f"{self.path / name} was measured", remedy)
        now = {} if settings is None else json.loads(strict_json(settings))
        for key in now.keys() | (cell.settings.keys() if now else ()):
            if cell.settings.get(key) != now.get(key):
                was = f"{key} {cell.settings.get(key)!r}, not {now.get(key)!r}"
                raise ChangedError(f"{self.path / name} was measured with {was}: {remedy}")
        return cell

    def add(self, cell: Cell) -> None:
        """Keeps a cell, with what the figures of the folder depend on."""
        identified = replace(cell, identity=self.identity or None)
        self.write(cell.file, asdict(identified))

    @property
    def dense(self) -> dict[str, Any] | None:
        """The fields of a :class:`Comparison` that are about the dense model, if it was measured.

        Raises:
            ChangedError: it was measured with another model, text, setting or code than the folder.
            ValueError: it cannot be read.
        """
        found = self._read("dense.json")
        if found is not None:
            found = as_measured(found)
            if not {"units", "n_params", "dense_test_ppl", "dense_interval"} <= found.keys():
                raise self._damaged("dense.json", "measurements are missing")
            identity = found.pop("identity", None)
            if self.identity:
                since, advice = f"{self.path / 'dense.json'} was measured", "give another --out"
                require_same(identity or {}, self.identity, since, advice)
        return found

    @dense.setter
    def dense(self, fields: Mapping[str, Any]) -> None:
        self.write("dense.json", {**fields, **({"identity": self.identity} if self.identity else {})})

    def order(self, model: PreTrainedModel) -> list[IntArray] | None:
        """The order of heads and channels that all cells were measured in; None while the folder is new.

        Args:
            model: what it is to fit, as it was loaded.

        Raises:
            ValueError: it is lost or damaged, or not an order of this model.
        """
        found = self._read(ORDER)
        if found is not None:
            heads = self.settings.get("heads", "single")
            return order_from_json(found, model, self.path / ORDER, "give another --out", heads)
        if (self.path / "settings.json").exists():
            raise ChangedError(
                f"{self.path} holds no {ORDER}, and so does not say which heads and channels it measured: nothing can "
                f"be added to it, give another --out"
            )
        return None

    @property
    def policies(self) -> KeptPolicies:
        """What searches of this comparison have learnt."""
        return KeptPolicies(self.path / "policies")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """Where the cells were measured, if that was recorded: device, dtype, threads, versions."""
        return self._read("manifest.json")

    def comparison(self, cells: list[Cell], settings: Mapping[str, Any]) -> Comparison:
        """All of it, for a report.

        Args:
            cells: those to show.
            settings: to show beside those of the folder.

        Raises:
            ValueError: the dense model was not measured yet.
        """
        dense = self.dense
        if dense is None:
            raise ValueError(f"{self.path} holds no measurement of the dense model yet")
        interval = dense["dense_interval"]
        dense["dense_interval"] = None if interval is None else tuple(interval)
        manifest = self.manifest or {}
        known = ("device", "dtype", "threads", "windows")
        where: dict[str, object] = {name: manifest[name] for name in known if name in manifest}
        where |= manifest.get("made", {})  # what was asked for is in the command
        asked = self._read("zero_shot.json")
        if asked is not None:
            where |= {"zero_shot_limit": asked["limit"], **({"zero_shot_unseen": True} if asked.get("apart") else {})}
        return Comparison(settings={**self.settings, **where, **settings}, cells=cells, **dense)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Replaces a file by strict JSON, in one move; the first brings along what is the same for all.

        Raises:
            ChangedError: another process has begun to fill the folder with something else meanwhile.
        """
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.path / ".lock"):
            self.require_same("settings.json", self.settings)
            begun = self._read(_IDENTITY)
            if begun is not None and self.identity:
                require_same(begun, self.identity, f"{self.path} was begun", "give another --out")
            if name == ORDER and self._read(name) not in (None, content):
                raise ChangedError(
                    f"another process ranked the model otherwise for {self.path}: give the command again"
                )
            self._replace(name, content)

    def _replace(self, name: str, content: Mapping[str, Any]) -> None:
        files = {name: content}
        if self.identity and not (self.path / _IDENTITY).exists():
            files = {_IDENTITY: self.identity, **files}
        if not (self.path / "settings.json").exists():
            files["settings.json"] = self.settings
        for file, text in files.items():
            with replacing(self.path / file) as scratch:
                scratch.write_text(strict_json(text, indent=1) + "\n", encoding="utf-8")

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise self._damaged(name, error) from error
        if not isinstance(content, dict):
            raise self._damaged(name, "an object expected")
        return content

    def _damaged(self, name: str, reason: object) -> ValueError:
        return ValueError(f"{self.path / name} is damaged, remove it to measure it again: {reason}")
