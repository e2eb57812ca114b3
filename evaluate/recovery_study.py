"""Which settings of a recovery work: learning rate, weights, objective, batch, tokens, one changed at a time or all.

    python evaluate/recovery_study.py runs/x
    python evaluate/recovery_study.py runs/x --rates 2e-5 5e-5 1e-4 --weights all lora-16 --grid
    python evaluate/recovery_study.py runs/y --out runs/recovery-study-ridge   # of a run with --calibration ridge

The first of every list is the base. model/ of the run is recovered with each combination and measured on the test text
of the run; where that fails it is said, and the others go on. What is finished is kept, one file per cell: the same
command goes on where it stopped, and another one adds to it. The table goes to study.md. Whether to train before or
after a calibration is two runs that differ in that.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ffprune_env.cli.consoles import fail, say, start_logging, tell, wide_console
from ffprune_env.cli.flag_groups import CellsFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import SearchedFlags, TrustFlags
from ffprune_env.cli.past_run import PastRun, RunSettings, folders_of, load_past_run, read_run_settings
from ffprune_env.cli.recovery_flags import RecoveryFlags
from ffprune_env.lm.batches import release_memory
from ffprune_env.lm.excess import share_removed, share_text
from ffprune_env.lm.identity import identity_of_versions, require_same
from ffprune_env.lm.loss import perplexity
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.lm.replacing import replacing
from ffprune_env.lm.same_model import require_same_model, rounding_tolerance
from ffprune_env.recovery.passages import digest_of
from ffprune_env.recovery.recover import recover
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.text import RecoveryText
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.recovered import written_before
from ffprune_env.run.strict_json import as_measured, strict_json

logger = logging.getLogger("ffprune")
console = wide_console()

#: Shares of cross-entropy, by the name of the objective.
OBJECTIVES = {"kl": 0.0, "both": 0.5, "ce": 1.0}
_LORA = "lora-"
# Versions and recovery text of a study, as digests; those of before do not say them.
_IDENTITY = "identity"
# What model/ of the run was, and by which of its figures that is told; studies of before say one of them elsewhere.
_MODEL, _SAVED = "model", ("kept", "calibration", "test_ppl")
# Settings that the study varies, with the flags that say them elsewhere and those that do here.
_VARIED = {
    "learning_rate": ("--recover-rate", "--rates"),
    "trained": ("--recover-weights", "--weights"),
    "lora": ("--lora", "--weights"),
    "cross_entropy": ("--recover-cross-entropy", "--objectives"),
    "windows_per_step": ("--recover-batch", "--batches"),
    "tokens": ("--recover-tokens", "--token-budgets"),
}


@dataclass(frozen=True, kw_only=True)
class Args(SearchedFlags, RecoveryFlags, CellsFlags, TrustFlags):
    """Settings of the study; every field is a flag."""

    rates: tuple[float, ...] = (2e-4, 5e-5, 1e-4, 4e-4)
    """learning rates"""
    weights: tuple[str, ...] = ("all", "outputs", "lora-8", "lora-32")
    """what is trained: all, outputs, or lora-RANK"""
    objectives: tuple[str, ...] = ("kl", "both", "ce")
    """what is minimized: kl, ce (cross-entropy), or both, half each"""
    batches: tuple[int, ...] = (1, 4)
    """windows behind one step"""
    token_budgets: tuple[int, ...] = (100_000, 25_000, 400_000)
    """tokens that go through the model"""
    grid: bool = False
    """every combination, instead of one change at a time"""


@dataclass(frozen=True)
class Cell:
    """One setting of everything.

    Attributes:
        rate, weights, objective, batch, tokens: one of each list.
    """

    rate: float
    weights: str
    objective: str
    batch: int
    tokens: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.weights}-{self.objective}-{self.rate:g}-{self.batch}-{self.tokens}"

    def settings(self, base: RecoverySettings) -> RecoverySettings:
        """What it is for the library; ValueError for what there is not."""
        if self.objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {self.objective!r}; allowed are {', '.join(OBJECTIVES)}")
        rank = self.weights.removeprefix(_LORA)
        if self.weights not in ("all", "outputs") and not (self.weights.startswith(_LORA) and rank.isdigit()):
            raise ValueError(f"unknown weights {self.weights!r}; allowed are all, outputs and {_LORA}RANK")
        changes: dict[str, Any] = {"lora": int(rank)} if rank.isdigit() else {"trained": self.weights}
        return replace(
            base,
            learning_rate=self.rate,
            tokens=self.tokens,
            windows_per_step=self.batch,
            cross_entropy=OBJECTIVES[self.objective],
            **changes,
        )


@dataclass(frozen=True)
class Job:
    """What is asked, checked as far as no model is needed."""

    run: RunFolder
    part: RunFolder
    settings: RunSettings
    cells: dict[Cell, RecoverySettings]
    begun: dict[str, Any]


DEFAULTS = {"out": Path("runs/recovery-study")}


def main() -> int:
    """Runs the study; returns the exit code."""
    args = read_flags(Args, __doc__, default=DEFAULTS)
    start_logging(console)
    code = 0
    try:
        job = plan(args)
        try:
            code = study(args, job)
        except KeyboardInterrupt:
            say("interrupted; what was finished is kept and reported")
            code = 130
        except RuntimeError as error:  # no memory
            code = fail(error, 1)
        report(args)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    return code


def plan(args: Args) -> Job:
    """Everything that can be refused before a model is loaded is refused here."""
    base = args.recovery_settings()
    args.require_recovery_text()
    run, part = folders_of(args.of)
    saved = written_before(part)["saved"]
    for name, (flag, here) in _VARIED.items():
        if getattr(base, name) != getattr(RecoverySettings(), name):
            raise ValueError(f"{flag} is what the study varies: say it by {here}")
    cells = {cell: cell.settings(base) for cell in cells_of(args)}
    others = {name: value for name, value in asdict(base).items() if name not in _VARIED}
    begun = {"run": str(part.path.resolve()), "recovery_text": args.recovery_text, "settings": others}
    begun |= {_IDENTITY: identity_of_versions(), _MODEL: {name: saved.get(name) for name in _SAVED}}
    require_begun(args.out, begun, adds=any(not file_of(args, cell).is_file() for cell in cells))
    return Job(run, part, read_run_settings(run, args.trust_remote_code), cells, begun)


def cells_of(args: Args) -> list[Cell]:
    """The base, and what differs from it in one thing; or every combination."""
    axes = (args.rates, args.weights, args.objectives, args.batches, args.token_budgets)
    if not all(axes):
        raise ValueError(
            "--rates, --weights, --objectives, --batches and --token-budgets take a value each, the base first"
        )
    every = [Cell(*values) for values in itertools.product(*axes)]
    if args.grid:
        return every
    first = tuple(axis[0] for axis in axes)
    return [x for x in every if sum(a != b for a, b in zip(asdict(x).values(), first, strict=True)) <= 1]


def study(args: Args, job: Job) -> int:
    """Recovers and measures cell after cell what was not yet, and returns the exit code."""
    missing, code = [cell for cell in job.cells if not file_of(args, cell).is_file()], 0
    if not missing:
        return code
    past, settings = load_past_run(job.run, job.settings), job.settings
    text = args.load_recovery_text(past.model, past.tokenizer, settings.text, settings, past.texts, settings.test_text)
    before = measured(job, past)
    identity = {**job.begun[_IDENTITY], "recovery text": digest_of(text.every)}
    begin(args.out, {**job.begun, _IDENTITY: identity, "before": before})
    for cell in missing:
        logger.info("%s ...", cell.name)
        try:
            content = {"cell": asdict(cell), **before, **recovered(job, job.cells[cell], past, text)}
            with replacing(file_of(args, cell)) as scratch:
                scratch.write_text(strict_json(content, indent=1) + "\n", encoding="utf-8")
            logger.info("%s: test PPL %.2f", cell.name, content["test_ppl"])
        except (ValueError, RuntimeError) as error:  # one that fails is no reason to lose the others
            code = fail(f"{cell.name}: {error}", 1)
        except OSError as error:  # a full disk, where the others would be trained for nothing
            return fail(f"{cell.name}: {error}", 1)
        release_memory()
    return code


def recovered(job: Job, settings: RecoverySettings, past: PastRun, text: RecoveryText) -> dict[str, Any]:
    """What became of model/ of the run with some settings: what training did, and perplexity on test text."""
    model = load_pruned(job.part.path / "model", device=str(past.model.device))
    result = recover(model, past.model, text.train, settings, held_out=text.held_out)
    return {"test_ppl": perplexity(model, past.texts["test"], job.settings.batch_size), **asdict(result)}


def measured(job: Job, past: PastRun) -> dict[str, float]:
    """Perplexities on test text of the dense model and of the one to be recovered."""
    pruned = load_pruned(job.part.path / "model", device=str(past.model.device))
    test, size = past.texts["test"], job.settings.batch_size
    return {"dense_ppl": perplexity(past.model, test, size), "pruned_ppl": perplexity(pruned, test, size)}


def require_begun(out: Path, begun: dict[str, Any], adds: bool = True) -> None:
    """Raises ValueError if the folder holds a study of something else, with which nothing can stand in one ranking.

    Args:
        out: the folder.
        begun: what is asked for, as far as it is known.
        adds: whether anything will be measured. Where nothing is, a study of before need not say all of it.
    """
    file, advice = out / "study.json", "give another --out"
    if not file.is_file():
        return
    there, now = json.loads(file.read_text(encoding="utf-8")), json.loads(strict_json(begun))
    for name, value in now.items():
        if name == _IDENTITY and name in there:
            require_same(there[name], value, f"{out} was begun", advice)
        elif name == _MODEL and name not in there:
            require_same_model_before(out, there, float(begun[_MODEL]["test_ppl"]))
        elif name == _MODEL:
            if there[name] != value:
                raise ValueError(f"{out} is a study of another model/ than {begun['run']} holds now: {advice}")
        elif name == _IDENTITY:
            if adds and any(out.glob("cell-*.json")):
                raise ValueError(f"{out} does not say on what text, and by what versions, it was measured: {advice}")
        elif there.get(name) != value:
            raise ValueError(f"{out} is a study with another {name}, {there.get(name)!r} and not {value!r}: {advice}")


def require_same_model_before(out: Path, there: dict[str, Any], test_ppl: float) -> None:
    """Raises ValueError if a study of before, which does not say what its model was, measured another perplexity of it.

    Args:
        out: the folder.
        there: what ``study.json`` says.
        test_ppl: of model/, as the run holds it now.
    """
    cells = (json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("cell-*.json")))
    before = next((as_measured(x)["pruned_ppl"] for x in (there.get("before"), *cells) if x is not None), None)
    if before is not None:
        try:
            require_same_model(test_ppl, before, rounding_tolerance(torch.bfloat16), "model/ of the run")
        except ValueError as error:
            raise ValueError(f"{out} is a study of another model/ than there is now: give another --out") from error


def begin(out: Path, begun: dict[str, Any]) -> None:
    """Says what a study is of, in its folder; ValueError if that was something else."""
    require_begun(out, begun)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "study.json") as scratch:
        scratch.write_text(strict_json(begun, indent=1) + "\n", encoding="utf-8")


def file_of(args: Args, cell: Cell) -> Path:
    """Where a cell is kept."""
    return args.out / f"cell-{cell.name}.json"


def report(args: Args) -> None:
    """Prints the table of all cells that there are, and writes it."""
    found = [as_measured(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(args.out.glob("cell-*.json"))]
    if not found:
        console.print("nothing was measured")
        return
    table = study_markdown(found)
    tell(console, table)
    with replacing(args.out / "study.md") as scratch:
        scratch.write_text(table, encoding="utf-8")


def study_markdown(found: list[dict[str, Any]]) -> str:
    """The table, the lowest test perplexity first."""
    lines = [
        f"Test PPL: dense {found[0]['dense_ppl']:.2f}, pruned {found[0]['pruned_ppl']:.2f}.",
        "",
        "| trained | loss | learning rate | windows a step | tokens | steps | seconds | held-out KL | test PPL "
        "| e removed | ended |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for x in sorted(found, key=lambda x: float(x["test_ppl"])):
        cell = x["cell"]
        gone = share_text(share_removed(x["test_ppl"], x["pruned_ppl"], x["dense_ppl"]))
        lines.append(
            f"| {cell['weights']} | {cell['objective']} | {cell['rate']:g} | {cell['batch']} | {x['tokens']:,} "
            f"| {x['steps']} | {x['seconds']:.0f} | {x['before']['kl']:.4f} → {x['after']['kl']:.4f} "
            f"| {x['test_ppl']:.2f} | {gone} | {x['stopped']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
