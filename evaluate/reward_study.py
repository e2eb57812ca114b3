"""How well a reward on little text ranks policies: Spearman correlation with their perplexity on test text.

    python evaluate/reward_study.py runs/a --test-text test.txt

Policies are taken from the samples of a run, at equal distances in the order of their measuring, and each is measured
on 1, 2, 4, 8, ... windows of search text, by PPL_dense / PPL and by the divergence from the dense model, and on test
text. The reward whose order on few windows is that of the test text is the better one to search by. It also says how
much noise there is: what one window says of the difference between two policies that all windows do not. What ends it
early, such as Ctrl-C, leaves a table of the policies that were measured.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.table import Table
from scipy.stats import spearmanr

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.cli.consoles import start_logging, wide_console
from ffprune_env.cli.ending import Ending
from ffprune_env.cli.flag_groups import JsonFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import TrustFlags
from ffprune_env.cli.text_flags import TestedTextFlags
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.lm.identity import identity_of_model, identity_of_texts, text_names
from ffprune_env.lm.loss import perplexity, window_losses
from ffprune_env.lm.models import load_model
from ffprune_env.run.config import evaluator_settings, require_by_sparsity, warn_of_trust
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.measuring import reference_policies
from ffprune_env.run.sample_log import read_samples
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.window_plan import load_planned_windows

logger = logging.getLogger("ffprune")
console = wide_console()
_FEWEST = 3  # policies that an order can be told of
#: Figures by name, see :func:`figures`: a number or several of them per policy.
Figures = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Args(TestedTextFlags, JsonFlags, TrustFlags):
    """Settings of the study; every field is a flag."""

    studied: tyro.conf.Positional[Path]
    """folder that train/ppo.py left, of a run with --evaluations"""
    policies: int = 24
    """how many samples of the run are measured"""
    rewarded_on: tuple[int, ...] = (1, 2, 4, 8, 16)
    """numbers of windows of search text that a reward is measured on"""


def main() -> int:
    """Measures and prints; returns the exit code."""
    args = read_flags(Args, __doc__, default={"test_windows": 4})
    start_logging(console)
    measured: Figures = {}
    ending = Ending(measured)
    with ending:
        for found in measure(args):
            for name, values in found.items():
                measured.setdefault(name, []).extend(values)
    if measured:
        report(args, measured)
        with ending:
            args.write_json(measured)
    return ending.code


def report(args: Args, measured: Figures) -> None:
    """Prints correlations, and signal and noise, as far as there are enough policies for them.

    Args:
        args: of the study.
        measured: figures of the policies, one after another.
    """
    n_policies, most = len(measured["test"]), max(args.rewarded_on)
    if n_policies < _FEWEST:
        console.print(f"{n_policies} policies were measured, {_FEWEST} are needed to tell how well they are ranked")
        return
    table = Table(title=f"Spearman correlation with test PPL, {n_policies} policies")
    for column in ("windows", "PPL", "KL"):
        table.add_column(column, justify="right")
    for n in args.rewarded_on:
        table.add_row(
            str(n), *(f"{spearmanr(measured[f'{kind} {n}'], measured['test'])[0]:.3f}" for kind in ("ppl", "kl"))
        )
    console.print(table)
    losses = np.array(measured["losses"]).reshape(-1, most)
    if min(losses.shape) > 1:  # of one window, or one sample, there is no telling what it is off by
        signal, noise = signal_and_noise(losses)
        console.print(
            f"samples differ by {signal:.3f} nats of ln PPL; what one window says of it is off by {noise:.3f}"
        )


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


def measure(args: Args) -> Iterator[Figures]:
    """Policy after policy, samples of the run before what they are compared with: the figures of each, by name.

    Raises:
        ValueError: the run cannot be studied, or is of another model or text than there is now.
        OSError: something cannot be loaded.
    """
    args.require_folder()
    args.require_windows()
    if not args.rewarded_on or min(args.rewarded_on) < 1:
        raise ValueError(f"--rewarded-on takes numbers from 1 on, got {' '.join(map(str, args.rewarded_on)) or 'none'}")
    run = RunFolder(args.studied)
    config = run.read_config()
    require_by_sparsity(config, run.path)
    if not isinstance(config.get("sparsity"), float):
        raise ValueError(f"{run.path} is not of a search for one sparsity: study one that is")
    nearly = nearly_as_sparse(run, config["sparsity"])
    chosen = np.linspace(0, len(nearly) - 1, min(args.policies, len(nearly))).round().astype(int)
    evaluator, test = load(args, run, config)
    references = reference_policies(config["sparsity"], evaluator)
    policies = [nearly[i] for i in chosen] + [references[name].kept for name in references if name != "dense"]
    for i, kept in enumerate(policies):
        found = figures(args, evaluator, test, kept, is_sample=i < len(chosen))
        logger.info("policy %d of %d: test PPL %.3f", i + 1, len(policies), *found["test"])
        yield found


def nearly_as_sparse(run: RunFolder, sparsity: float) -> list[IntArray]:
    """Groups kept by the samples of a run at nearly its sparsity, int64 [N] each; ValueError where few can be read.

    Args:
        run: its folder; one that took its start as it is holds no samples.
        sparsity: σ of the run.
    """
    samples, _ = read_samples(run.samples)
    nearly = [x.kept for x in samples if x.target_sparsity >= 0.95 * sparsity]
    if len(nearly) < _FEWEST:
        raise ValueError(
            f"{run.path} holds {len(nearly)} samples at nearly its sparsity, {_FEWEST} are needed: search with "
            f"--evaluations 96"
        )
    return nearly


def figures(args: Args, evaluator: LMEvaluator, test: torch.Tensor, kept: IntArray, is_sample: bool) -> Figures:
    """Perplexity and divergence of a policy on every number of windows, and perplexity on test text.

    Args:
        args: of the study.
        evaluator: of the run.
        test: int64 [n, seq_len], test text.
        kept: int64 [N], groups kept per unit.
        is_sample: whether it is one of the run's: of these ``losses`` has the one on every window, too.
    """
    found: Figures = {"test": [], "losses": []}
    if is_sample:
        with evaluator.prunable.pruned(kept, evaluator.calibration if evaluator.calibrated else None) as model:
            found["losses"] += window_losses(model, evaluator.windows, evaluator.batch_size).tolist()
    for n in args.rewarded_on:
        ppl, kl = evaluator.compare(kept, n)
        found[f"ppl {n}"], found[f"kl {n}"] = [ppl / evaluator.dense(n)], [kl]
    with evaluator.prunable.pruned(kept, evaluator.calibration) as model:
        found["test"].append(perplexity(model, test))
    return found


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
