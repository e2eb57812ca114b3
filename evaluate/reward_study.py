"""How well a reward on little text ranks policies: Spearman correlation with their perplexity on test text.

    python evaluate/reward_study.py runs/a --test-text test.txt

Policies are taken from the samples of a run, at equal distances in the order of their measuring, and each is measured
on 1, 2, 4, 8, ... windows of search text, by PPL_dense / PPL and by the divergence from the dense model, and on test
text. The reward whose order on few windows is that of the test text is the better one to search by.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from scipy.stats import spearmanr

from ffprune_env.cli.consoles import wide_console
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import BEFORE, require_folder_of, warn_of_trust
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.lm.identity import identity_of_model, identity_of_texts, text_names
from ffprune_env.lm.loss import perplexity
from ffprune_env.lm.models import load_model
from ffprune_env.run.folder import RunFolder, strict_json
from ffprune_env.run.results import reference_policies
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.windows import load_test_windows

logger = logging.getLogger("ffprune")
console = wide_console()


@dataclass(frozen=True)
class Args:
    """Settings of the study; every field is a flag."""

    run: tyro.conf.Positional[Path]
    """folder that train/ppo.py left"""
    test_text: str
    """as for train/ppo.py"""
    test_seq_len: int = 2048
    """tokens per window of test text"""
    test_windows: int = 4
    """windows of test text, from its beginning"""
    policies: int = 24
    """how many samples of the run are measured"""
    windows: tuple[int, ...] = (1, 2, 4, 8, 16)
    """numbers of windows of search text"""
    json: Path | None = None
    """file to write every measurement to"""
    trust_remote_code: bool = False
    """run Python code that the checkpoint brings along, whatever the run did"""


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__)
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        measured = measure(args)
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", escape(str(error)))
        return 2
    if args.json is not None:
        args.json.write_text(strict_json(measured, indent=1) + "\n", encoding="utf-8")
    table = Table(title=f"Spearman correlation with test PPL, {len(measured['test'])} policies")
    for column in ("windows", "PPL", "KL"):
        table.add_column(column, justify="right")
    for n in args.windows:
        table.add_row(
            str(n), *(f"{spearmanr(measured[f'{kind} {n}'], measured['test'])[0]:.3f}" for kind in ("ppl", "kl"))
        )
    console.print(table)
    return 0


def measure(args: Args) -> dict[str, list[float]]:
    """Perplexity and divergence of every policy on every number of windows, and perplexity on test text."""
    require_folder_of("--json", args.json)
    config = yaml.safe_load((args.run / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(config["sparsity"], float):
        raise ValueError(f"{args.run} is of a search for several sparsities: study one of a single sparsity")
    samples = [json.loads(line) for line in (args.run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    nearly = [np.array(x["kept"]) for x in samples if x["target_sparsity"] >= 0.95 * config["sparsity"]]
    if len(nearly) < 3:
        raise ValueError(f"{args.run} holds {len(nearly)} samples at nearly its sparsity, 3 are needed")
    chosen = np.linspace(0, len(nearly) - 1, min(args.policies, len(nearly))).round().astype(int)
    evaluator, test = load(args, config)
    references = reference_policies(config["sparsity"], evaluator)
    policies = [nearly[i] for i in chosen] + [references[name].kept for name in references if name != "dense"]
    results: dict[str, list[float]] = {"test": []}
    for i, kept in enumerate(policies):
        for n in args.windows:
            ppl, kl = evaluator.compare(kept, n)
            results.setdefault(f"ppl {n}", []).append(ppl / evaluator.dense(n))
            results.setdefault(f"kl {n}", []).append(kl)
        with evaluator.prunable.pruned(kept, evaluator.calibration) as model:
            results["test"].append(perplexity(model, test))
        logger.info("policy %d of %d: test PPL %.3f", i + 1, len(policies), results["test"][-1])
    return results


def load(args: Args, config: dict[str, Any]) -> tuple[LMEvaluator, object]:
    """The evaluator of the run, with all the windows that are asked for, and the test text."""
    if not args.trust_remote_code:
        warn_of_trust(config, args.run / "config.yaml")
    run, name, text = RunFolder(args.run), str(config["model"]), str(config["text"])
    dtype = run.dtype() if config["dtype"] == "auto" else str(config["dtype"])
    model, tokenizer = load_model(name, dtype, str(config["device"]), args.trust_remote_code)
    run.require_same(identity_of_model(model), name, advice="search it again")
    how = ("seq_len", "calibration_windows", "channels_per_group", "criterion", "calibrated", "ridge", "factor_storage")
    settings = {name: (BEFORE | config)[name] for name in how}
    plan = ("seq_len", "samples", "final_samples", "curve_windows", "calibration_windows")
    sizes = {name: int(config[name]) for name in plan if name in config}
    texts = load_planned_windows(model, tokenizer, text, **sizes).texts
    run.require_same(identity_of_texts(texts), name, text_names(text, None, texts), "search it again")
    test = load_test_windows(text, args.test_text, tokenizer, args.test_seq_len, args.test_windows, model=model)
    sizes = {"seq_len": settings["seq_len"], "calibration_windows": settings["calibration_windows"]}
    studied = load_planned_windows(model, tokenizer, text, samples=max(args.windows), **sizes).texts
    require_unseen(test, *texts.values(), *studied.values())  # before the model is ranked, which takes longer
    order = run.order(model, "search it again")
    if order is None:
        logger.warning("%s does not say in which order it had heads and channels: they are ranked again", args.run)
    return build_evaluator(model, tokenizer, text, texts=studied, order=order, **settings), test


if __name__ == "__main__":
    sys.exit(main())
