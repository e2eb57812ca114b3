"""What a comparison of pruning methods measured, and the folder that it is kept in, one file per cell."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ffprune_env.run_folder import strict_json
from ffprune_env.settings import BEFORE


@dataclass(frozen=True)
class Cell:
    """One method at one sparsity with one seed, searched and measured.

    Attributes:
        method: its name.
        target_sparsity: σ asked for.
        seed: of what the method drew; None if it draws nothing, and one cell stands for all seeds.
        kept: groups kept per unit; None for methods that rebuild the weights and remove no groups.
        sparsity: fraction of Σw removed; None as above.
        total_sparsity: fraction of all parameters of the model removed.
        params: parameters that stay.
        search_ppl: perplexity on the windows of an evaluation, of the calibrated model if that is what the comparison
            rewards; None for methods that have another calibration.
        test_ppl: perplexity on test text without calibration, or as a method that rebuilds the weights left them.
        test_interval: bootstrap 95 % interval of it, over windows.
        calibrated_test_ppl: perplexity on test text with calibration; None for methods that rebuild the weights.
        calibrated_test_interval: its interval.
        evaluations: what the search spent, in windows measured, divided by those of an evaluation.
        tokens: of search text that it evaluated.
        seconds: that it took, without the measurements above.
        trace: (tokens evaluated, search perplexity of what the method would have returned then), ascending; empty for
            methods that do not search.
        zero_shot: accuracy by task, and their ``average``, of the final model.
        zero_shot_stderr: standard errors of these.
    """

    method: str
    target_sparsity: float
    seed: int | None
    kept: list[int] | None
    sparsity: float | None
    total_sparsity: float
    params: int
    search_ppl: float | None
    test_ppl: float
    test_interval: tuple[float, float]
    calibrated_test_ppl: float | None
    calibrated_test_interval: tuple[float, float] | None
    evaluations: float
    tokens: int
    seconds: float
    trace: list[tuple[int, float]]
    zero_shot: dict[str, float] | None = None
    zero_shot_stderr: dict[str, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything a report shows.

    Attributes:
        settings: what was compared on what.
        units: name, kind, layer and n_groups of every unit.
        n_params: parameters of the dense model.
        dense_test_ppl: its perplexity on test text.
        dense_interval: bootstrap 95 % interval of it.
        cells: what was measured.
        dense_zero_shot: accuracies of the dense model.
        dense_zero_shot_stderr: standard errors of these.
    """

    settings: dict[str, object]
    units: list[dict[str, object]]
    n_params: int
    dense_test_ppl: float
    dense_interval: tuple[float, float]
    cells: list[Cell]
    dense_zero_shot: dict[str, float] | None = None
    dense_zero_shot_stderr: dict[str, float] | None = None


class ComparisonFolder:
    """What a comparison has measured so far, safe from Ctrl-C: ``settings.json``, ``dense.json`` and ``cells/``.

    Nothing is written before there is something to keep. Two processes may fill one folder if they do not work on the
    same cells.

    Args:
        path: the folder; made if there is none.
        settings: what all cells have in common.

    Raises:
        ValueError: the folder was made with other settings; the message names one that differs.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(strict_json(settings))
        self.require_same("settings.json", self.settings)

    def require_same(self, name: str, settings: Mapping[str, Any]) -> None:
        """Raises ValueError if a file of settings is there and differs."""
        made_with = self._read(name)
        for key in settings.keys() | (made_with or settings).keys():
            there, asked = (made_with or settings).get(key, BEFORE.get(key)), settings.get(key)
            if there != asked:
                raise ValueError(f"{self.path} was made with {key} {there!r}, not {asked!r}: give another --out")

    def cell(self, method: str, sparsity: float, seed: int | None) -> Cell | None:
        """A cell that was measured before, if it was."""
        name = cell_name(method, sparsity, seed)
        found = self._read(name)
        try:
            return None if found is None else _as_cell(found)
        except (KeyError, TypeError) as error:
            raise self._damaged(name, error) from error

    def add(self, cell: Cell) -> None:
        """Keeps a cell."""
        self.write(cell_name(cell.method, cell.target_sparsity, cell.seed), asdict(cell))

    @property
    def dense(self) -> dict[str, Any] | None:
        """The fields of a :class:`Comparison` that are about the dense model, if it was measured."""
        found = self._read("dense.json")
        if found is not None:
            _restore_inf(found)
            if not {"units", "n_params", "dense_test_ppl", "dense_interval"} <= found.keys():
                raise self._damaged("dense.json", "measurements are missing")
        return found

    @dense.setter
    def dense(self, fields: Mapping[str, Any]) -> None:
        self.write("dense.json", fields)

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
        dense["dense_interval"] = tuple(dense["dense_interval"])
        manifest = self.manifest or {}
        where: dict[str, object] = {name: manifest[name] for name in ("device", "dtype", "threads") if name in manifest}
        return Comparison(settings={**self.settings, **where, **settings}, cells=cells, **dense)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Replaces a file by strict JSON, in one move; the first one brings ``settings.json`` along."""
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        files = {name: content}
        if not (self.path / "settings.json").exists():
            files["settings.json"] = self.settings
        for file, text in files.items():
            scratch = self.path / f"{file}.writing-{os.getpid()}"
            scratch.write_text(strict_json(text, indent=1) + "\n", encoding="utf-8")
            scratch.replace(self.path / file)

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


def cell_name(method: str, sparsity: float, seed: int | None) -> str:
    """The file of a cell, inside the folder."""
    return f"cells/{method}-s{100 * sparsity:g}{'' if seed is None else f'-seed{seed}'}.json"


def _as_cell(content: dict[str, Any]) -> Cell:
    _restore_inf(content)
    for name in ("test_interval", "calibrated_test_interval"):
        if content[name] is not None:
            content[name] = tuple(content[name])
    content["trace"] = [tuple(point) for point in content["trace"]]
    return Cell(**content)


def _restore_inf(content: dict[str, Any]) -> None:
    """Undoes what strict JSON does to infinite numbers: they were written as null, and named."""
    for name in content.pop("non_finite", []):
        content[name] = _with_inf(content[name])


def _with_inf(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_inf(item) for item in value]
    return math.inf if value is None else value
