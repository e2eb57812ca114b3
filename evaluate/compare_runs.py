"""One table of what several runs chose, beside dense, uniform and ffn-only, all on the same test text.

    python evaluate/compare_runs.py runs/a runs/b --test-text test.txt --test-windows 40

The runs must have searched one model on one text with one ranking and one calibration; sparsities, seeds, rewards,
starts and evaluations may differ, and with them the windows that a run looked at: search PPL is on those of the first
run. Of a run of several sparsities all are compared. Every policy is measured with and without calibration, once,
however many runs chose it. What ends it early, such as Ctrl-C, leaves a table of what there is.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.table import Table
from transformers import PreTrainedModel

from ffprune_env.budget.arrays import IntArray
from ffprune_env.cli.consoles import fail, start_logging, wide_console
from ffprune_env.cli.ending import Ending
from ffprune_env.cli.flag_groups import JsonFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import TrustFlags
from ffprune_env.cli.text_flags import TestedTextFlags
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.identity import (
    ChangedError,
    Identity,
    identity_of_model,
    identity_of_settings,
    identity_of_texts,
    identity_of_versions,
    text_names,
)
from ffprune_env.lm.models import load_model
from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK, FELL_BACK_NOTE, CalibrationKind
from ffprune_env.run.best import read_best
from ffprune_env.run.config import (
    evaluator_settings,
    read_config,
    require_by_sparsity,
    targets_of,
    warn_of_trust,
)
from ffprune_env.run.folder import RunFolder, part_of
from ffprune_env.run.measuring import measure_policy, reference_policies
from ffprune_env.run.results import PolicyResult
from ffprune_env.texts.bos import bos_protocol
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.windows import NAMED_TEXTS, require_text

logger = logging.getLogger("ffprune")
console = wide_console()
# What may differ: rewards do not say which groups go and how the rest is re-fitted, nor what a search was not to see.
# What `auto` of bos stands for is known when there is a model.
_OWN = ("reward_model", "reward", "data_dir", "batch_size", "bos")


@dataclass(frozen=True, kw_only=True)
class Args(TestedTextFlags, JsonFlags, TrustFlags):
    """Settings of the comparison; every field is a flag."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders that train/ppo.py left"""


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__, default={"test_windows": 40})
    start_logging(console)
    try:
        evaluator, policies, test_windows = prepare(args)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except RuntimeError as error:  # no memory
        return fail(error, 1)
    results: dict[tuple[str, bool], PolicyResult] = {}
    ending = Ending(results)
    with ending:
        for name, calibrated, result in measure(evaluator, policies, test_windows):
            results[name, calibrated] = result
            ppls = f"search {result.search_ppl:.3f}, test {result.test_ppl:.3f}"
            logger.info("%s, %s: %s", name, "calibrated" if calibrated else "plain", ppls)
            args.write_json({"results": [{"policy": key[0], **asdict(x)} for key, x in results.items()]})
    console.print(table(policies, results, evaluator.calibration_asked))
    return ending.code


def prepare(args: Args) -> tuple[LMEvaluator, dict[str, IntArray], torch.Tensor]:
    """Checks that the runs belong together, and loads what they chose, what that is compared with and the test text."""
    if not args.runs:
        raise ValueError("which runs? give the folders that train/ppo.py left")
    args.require_folder()
    args.require_windows()
    if args.test_text is not None:
        require_text(args.test_text)
    configs = {path: read_config(path / "config.yaml") for path in args.runs}
    parts = {path: parts_of(path, config) for path, config in configs.items()}
    first = configs[args.runs[0]]
    plans = {path: require_alike(path, config, first) for path, config in configs.items()}
    chosen = {
        folder: read_best(RunFolder(folder), path)["chosen"]["kept"]
        for path, found in parts.items()
        for folder in found.values()
    }
    named = args.test_text is None or args.test_text in NAMED_TEXTS
    if not named and Path(str(args.test_text)).resolve() == Path(first["text"]).resolve():
        raise ValueError(f"{args.test_text} is what the runs were searched on: give another text with --test-text")
    if not args.trust_remote_code:
        warn_of_trust(first, args.runs[0] / "config.yaml")
    dtype = RunFolder(args.runs[0]).dtype() if first["dtype"] == "auto" else first["dtype"]
    model, tokenizer = load_model(first["model"], dtype, first["device"], args.trust_remote_code)
    require_same_as_runs(args.runs, identity_of_model(model), first)  # before it is ranked
    warn_of_versions(args.runs)
    begin = {path: bos_protocol(config["bos"], model, tokenizer) for path, config in configs.items()}
    for path, bos in begin.items():
        if bos != begin[args.runs[0]]:
            raise ValueError(f"{path} has windows with bos {bos!r}, the first run has {begin[args.runs[0]]!r}")
    settings = plans[args.runs[0]]
    test_windows = args.load_test_beside(first["text"], model, tokenizer, settings.bos)
    # Who searches shares the text out otherwise than who takes a start as it is; all calibrate on the same windows.
    planned = cache(partial(load_planned_windows, model, tokenizer, first["text"]))
    texts = {path: planned(plan).texts for path, plan in plans.items()}
    for path, seen in texts.items():
        require_same_as_runs([path], identity_of_texts(seen), first)
    # Before the model is ranked, which takes longer.
    require_unseen(test_windows, *(windows for seen in texts.values() for windows in seen.values()))
    settings, order = replace(settings, reward_model="cut"), order_of_runs(args.runs, model)
    evaluator = build_evaluator(model, tokenizer, first["text"], settings, order, texts[args.runs[0]])
    policies: dict[str, IntArray] = {}
    for sparsity, folder in (part for found in parts.values() for part in found.items()):
        for name, allocation in reference_policies(sparsity, evaluator).items():
            policies.setdefault(name if name == "dense" else f"{name} σ {sparsity:g}", allocation.kept)
        policies[str(folder)] = evaluator.prunable.check_kept(chosen[folder])
    return evaluator, policies, test_windows


def require_alike(path: Path, config: Mapping[str, Any], first: Mapping[str, Any]) -> EvaluatorSettings:
    """How a run ranked, calibrated and measured, less the windows that it did not need; ValueError unless as the first.

    Args:
        path: the run.
        config: its settings.
        first: those of the run that it is compared with.
    """
    settings = evaluator_settings(config, path / "config.yaml")
    shared = ("model", "dtype", "device", "text", *(name for name in asdict(settings) if name not in _OWN))
    for name in shared:
        if config.get(name) != first.get(name):
            raise ValueError(f"{path} has {name} {config.get(name)!r}, the first run has {first.get(name)!r}")
    # A config that was edited since would rank or calibrate another way than the run did.
    require_same_as_runs([path], identity_of_settings({name: config[name] for name in shared}), config)
    return replace(settings, reward="ppl")


def require_same_as_runs(paths: Sequence[Path], now: Identity, config: Mapping[str, Any]) -> None:
    """Raises ChangedError unless every run was made with the model and texts that there are now."""
    uses = ("search", "finalists", "curves", "pool", "watch", "calibration")
    names = text_names(config["text"], None, uses, config.get("calibration_text"))
    for path in paths:
        RunFolder(path).require_same(now, config["model"], names, "search it again")


def order_of_runs(paths: Sequence[Path], model: PreTrainedModel) -> list[IntArray] | None:
    """The order of heads and channels that every run measured; None if one of before does not say, which is said."""
    orders = {path: RunFolder(path).order(model, "search it again") for path in paths}
    for path, order in orders.items():
        if order is None:
            logger.warning("%s does not say in which order it had heads and channels: they are ranked again", path)
            return None
        if not all(map(np.array_equal, order, orders[paths[0]] or order)):
            raise ValueError(
                f"{path} has heads and channels in another order than {paths[0]}, as another number of threads ranks "
                f"them: compare them one by one, or search it again"
            )
    return orders[paths[0]]


def warn_of_versions(paths: Sequence[Path]) -> None:
    """Says of every run whether other versions searched it than measure it now."""
    for path in paths:
        try:
            RunFolder(path).require_same(identity_of_versions(), advice="what it chose is measured by those of now")
        except ChangedError as error:
            logger.warning("%s", error)


def parts_of(path: Path, config: Mapping[str, Any]) -> dict[float, Path]:
    """The folders that hold what a run chose, by sparsity; ValueError for what no run has as its sparsity."""
    require_by_sparsity(config, path)
    targets = targets_of(config, path).targets
    return {target: path if len(targets) == 1 else part_of(path, target) for target in targets}


def measure(
    evaluator: LMEvaluator, policies: Mapping[str, IntArray], test_windows: torch.Tensor
) -> Iterator[tuple[str, bool, PolicyResult]]:
    """Measures every policy, calibrated first; yields its name and whether it was calibrated with the result."""
    for calibrated in (True, False) if evaluator.calibration is not None else (False,):
        measured: dict[bytes, PolicyResult] = {}
        for name, kept in policies.items():
            if calibrated and name == "dense":
                continue  # the same as without
            key = kept.tobytes()
            if key not in measured:
                measured[key] = measure_policy(evaluator, kept, test_windows, calibrated=calibrated)
            yield name, calibrated, measured[key]


def table(
    policies: Mapping[str, IntArray], results: Mapping[tuple[str, bool], PolicyResult], asked: CalibrationKind
) -> Table:
    """A row per policy, with gaps for what was not measured, and a mark where it was not calibrated as asked for."""
    report = Table()
    for column in ("policy", "removed\nof Σw", "search\nPPL", "test\nPPL", "search,\ncalibrated", "test,\ncalibrated"):
        # The ends of long names tell runs apart.
        report.add_column(column, justify="left" if column == "policy" else "right", overflow="fold")
    for name in policies:
        measured = [results.get((name, calibrated)) for calibrated in (False, True)]
        removed = next((f"{x.sparsity:.2%}" for x in measured if x is not None), "")
        marked = measured[1] is not None and measured[1].calibration != asked
        if marked:
            report.caption, report.caption_justify = FELL_BACK_NOTE, "left"
        row = (cell for x in measured for cell in cells(x))
        report.add_row(f"{name} {FELL_BACK_MARK}" if marked else name, removed, *row)
    return report


def cells(result: PolicyResult | None) -> tuple[str, str]:
    """Search and test perplexity, or nothing."""
    return ("", "") if result is None else (f"{result.search_ppl:.2f}", f"{result.test_ppl:.2f}")


if __name__ == "__main__":
    sys.exit(main())
