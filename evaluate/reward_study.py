"""How well a reward on little text ranks policies: Spearman correlation with their perplexity on test text.

    python evaluate/reward_study.py runs/a --test-text test.txt

Policies are taken from the samples of a run, at equal distances in the order of their measuring, and each is measured
on 1, 2, 4, 8, ... windows of search text, by PPL_dense / PPL and by the divergence from the dense model, and on test
text. The reward whose order on few windows is that of the test text is the better one to search by. It also says how
much noise there is: what one window says of the difference between two policies that all windows do not.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.table import Table
from scipy.stats import spearmanr

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.cli.consoles import fail, start_logging, wide_console
from ffprune_env.cli.flag_groups import JsonFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import TrustFlags
from ffprune_env.cli.text_flags import TestedTextFlags
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.lm.identity import identity_of_model, identity_of_texts, text_names
from ffprune_env.lm.loss import perplexity, window_losses
from ffprune_env.lm.models import load_model
from ffprune_env.run.config import evaluator_settings, warn_of_trust
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.measuring import reference_policies
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows

logger = logging.getLogger("ffprune")
console = wide_console()


@dataclass(frozen=True, kw_only=True)
class Args(TestedTextFlags, JsonFlags, TrustFlags):
    """Settings of the study; every field is a flag."""

    studied: tyro.conf.Positional[Path]
    """folder that train/ppo.py left"""
    policies: int = 24
    """how many samples of the run are measured"""
    rewarded_on: tuple[int, ...] = (1, 2, 4, 8, 16)
    """numbers of windows of search text that a reward is measured on"""


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__, default={"test_windows": 4})
    start_logging(console)
    try:
        measured = measure(args)
        args.write_json(measured)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    table = Table(title=f"Spearman correlation with test PPL, {len(measured['test'])} policies")
    for column in ("windows", "PPL", "KL"):
        table.add_column(column, justify="right")
    for n in args.rewarded_on:
        table.add_row(
            str(n), *(f"{spearmanr(measured[f'{kind} {n}'], measured['test'])[0]:.3f}" for kind in ("ppl", "kl"))
        )
    console.print(table)
    if max(args.rewarded_on) > 1:  # of one window there is no telling what it is off by
        signal, noise = signal_and_noise(np.array(measured["losses"]).reshape(-1, max(args.rewarded_on)))
        console.print(
            f"samples differ by {signal:.3f} nats of ln PPL; what one window says of it is off by {noise:.3f}"
        )
    return 0


def signal_and_noise(losses: FloatArray) -> tuple[float, float]:
    """Standard deviations, in nats, of what policies differ by, and of what one window adds to it.

    That windows are harder or easier for all policies alike is neither.

    Args:
        losses: [policies, windows], at least two of both.
    """
    centred = losses - losses.mean(axis=0)
    mean = centred.mean(axis=1)
    n_policies, n_windows = losses.shape
    noise = float(np.square(centred - mean[:, None]).sum()) / ((n_policies - 1) * (n_windows - 1))
    signal = float(mean.var(ddof=1)) - noise / n_windows
    return math.sqrt(max(signal, 0.0)), math.sqrt(noise)


def measure(args: Args) -> dict[str, list[float]]:
    """Perplexity and divergence of every policy on every number of windows, and perplexity on test text.

    ``losses`` are those of every sample on every window, one sample after another.
    """
    args.require_folder()
    args.require_windows()
    if not args.rewarded_on or min(args.rewarded_on) < 1:
        raise ValueError(f"--rewarded-on takes numbers from 1 on, got {' '.join(map(str, args.rewarded_on)) or 'none'}")
    run = RunFolder(args.studied)
    config = run.read_config()
    if not isinstance(config.get("sparsity"), float):
        raise ValueError(f"{run.path} is not of a search for one sparsity: study one that is")
    samples = [json.loads(line) for line in run.samples.read_text(encoding="utf-8").splitlines()]
    nearly = [np.array(x["kept"]) for x in samples if x["target_sparsity"] >= 0.95 * config["sparsity"]]
    if len(nearly) < 3:
        raise ValueError(f"{run.path} holds {len(nearly)} samples at nearly its sparsity, 3 are needed")
    chosen = np.linspace(0, len(nearly) - 1, min(args.policies, len(nearly))).round().astype(int)
    evaluator, test = load(args, run, config)
    references = reference_policies(config["sparsity"], evaluator)
    policies = [nearly[i] for i in chosen] + [references[name].kept for name in references if name != "dense"]
    results: dict[str, list[float]] = {"test": [], "losses": []}
    for i, kept in enumerate(policies):
        if i < len(chosen):
            with evaluator.prunable.pruned(kept, evaluator.calibration if evaluator.calibrated else None) as model:
                results["losses"] += window_losses(model, evaluator.windows, evaluator.batch_size).tolist()
        for n in args.rewarded_on:
            ppl, kl = evaluator.compare(kept, n)
            results.setdefault(f"ppl {n}", []).append(ppl / evaluator.dense(n))
            results.setdefault(f"kl {n}", []).append(kl)
        with evaluator.prunable.pruned(kept, evaluator.calibration) as model:
            results["test"].append(perplexity(model, test))
        logger.info("policy %d of %d: test PPL %.3f", i + 1, len(policies), results["test"][-1])
    return results


def load(args: Args, run: RunFolder, config: Mapping[str, Any]) -> tuple[LMEvaluator, torch.Tensor]:
    """The evaluator of the run, with all the windows that are asked for, and the test text."""
    where = run.path / "config.yaml"
    settings = evaluator_settings(config, where)
    if not args.trust_remote_code:
        warn_of_trust(config, where)
    name, text = str(config["model"]), str(config["text"])
    dtype = run.dtype() if config["dtype"] == "auto" else str(config["dtype"])
    model, tokenizer = load_model(name, dtype, str(config["device"]), args.trust_remote_code)
    run.require_same(identity_of_model(model), name, advice="search it again")
    texts = load_planned_windows(model, tokenizer, text, settings).texts
    names = text_names(text, None, texts, settings.calibration_text)
    run.require_same(identity_of_texts(texts), name, names, "search it again")
    test = args.load_test_beside(text, model, tokenizer, settings.bos)
    settings = replace(settings, search_windows=max(args.rewarded_on), final_windows=0, curve_windows=0)
    settings = replace(settings, fresh_windows=False, patience=None, eval_every=0, reward="ppl")
    studied = load_planned_windows(model, tokenizer, text, settings).texts
    require_unseen(test, *texts.values(), *studied.values())  # before the model is ranked, which takes longer
    order = run.order(model, "search it again")
    if order is None:
        logger.warning("%s does not say in which order it had heads and channels: they are ranked again", run.path)
    return build_evaluator(model, tokenizer, text, settings, order, studied), test


if __name__ == "__main__":
    sys.exit(main())
