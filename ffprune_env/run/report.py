"""What a run reports of one sparsity: the model that it chose first, then what that is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ffprune_env.budget.allocation import Allocation, whole
from ffprune_env.env import measure_reward
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.export.model_card import CardFacts
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.plots import learning_curve_plot, retention_plot
from ffprune_env.run.results import (
    Measured,
    PolicyResult,
    baselines,
    best_policy,
    label,
    measure_policies,
    results_table,
)
from ffprune_env.run.saved_model import write_and_measure
from ffprune_env.run.tensorboard import log_final
from ffprune_env.search.run_search import Outcome
from ffprune_env.search.settings import SearchSettings
from ffprune_env.texts.window_plan import windows_made


class Report:
    """Measures policies and leaves files, one step after another; every step is kept as soon as it is made.

    Args:
        run: the folder of this sparsity.
        evaluator: the model, its search text and its calibration.
        test_windows: int64 [n, seq_len].
        outcome: of the search.
        settings: of the search; its target is the sparsity.
        about: what ``best.json`` tells beside the figures, such as the names of the texts.
        dense: the dense model, if it was measured already, such as for another sparsity of the same run.

    Attributes:
        failure: one line that says what is wrong with the model that was written; None if nothing is.
    """

    def __init__(
        self,
        run: RunFolder,
        evaluator: LMEvaluator,
        test_windows: torch.Tensor,
        outcome: Outcome,
        settings: SearchSettings,
        about: Mapping[str, Any],
        dense: PolicyResult | None = None,
    ) -> None:
        self.run, self.evaluator, self.test_windows = run, evaluator, test_windows
        self.outcome, self.settings, self.about = outcome, settings, about
        self.answer = outcome.answers[settings.target]
        self.samples = outcome.samples_for(settings.target)
        self.policies: dict[str, Allocation] = {}
        known = {} if dense is None else {"dense": dense}
        self.results = Measured(known, {}, evaluator.calibration_asked)
        self.failure: str | None = None

    def measure_chosen(self) -> None:
        """Measures the dense model, if it was not, and the policy that was chosen, cut and calibrated."""
        self._measure({"dense": whole(self.evaluator.units), "chosen": self.answer.allocation})

    @property
    def dense(self) -> PolicyResult:
        """The dense model; measured with the policy that was chosen."""
        return self.results.plain["dense"]

    def write_model(self, tokenizer: PreTrainedTokenizerBase, facts: CardFacts, on_cpu: bool = False) -> None:
        """Writes the chosen model to ``model/``, and measures what a user reads back from there.

        Args:
            tokenizer: goes beside it.
            facts: for the model card, as far as they are no figures of this report.
            on_cpu: read it back there.
        """
        chosen = self.results.final["chosen"]
        facts = replace(
            facts,
            target_sparsity=self.settings.target,
            dense_ppl=self.dense.test_ppl,
            pruned_ppl=chosen.test_ppl,
            calibration_asked=self.results.asked,
        )
        folder, batch_size = self.run.path / "model", self.evaluator.batch_size
        saved = write_and_measure(
            self.evaluator, chosen, self.test_windows, folder, tokenizer, facts, batch_size, on_cpu
        )
        self.results, self.failure = replace(self.results, saved=saved.result), saved.failure
        self._keep()

    def measure_baselines(self) -> None:
        """Measures what the chosen policy is compared with, as far as that reaches the sparsity."""
        self._measure(baselines(self.settings.target, self.evaluator.units))

    def draw(self, hyperparameters: Mapping[str, Any]) -> None:
        """Leaves the plots, and the outcome in TensorBoard.

        Args:
            hyperparameters: every setting of the run.
        """
        pruned = {label(name): policy for name, policy in self.policies.items() if name != "dense"}
        settings, units = self.settings, self.evaluator.units
        rewards = {
            name: measure_reward(self.evaluator, policy.kept, settings.search_windows, settings.reward)[0]
            for name, policy in pruned.items()
        }
        retention = retention_plot(units, {name: policy.rates for name, policy in pruned.items()})
        self.run.save_plot("learning_curve", learning_curve_plot(self.samples, rewards, settings.reward))
        self.run.save_plot("retention", retention)
        where = "final" if len(self.outcome.answers) == 1 else f"final_{self.run.path.name}"
        # Shorter and fewer than asked for, maybe.
        made = windows_made({**self.evaluator.texts, "test": self.test_windows})
        log_final(self.outcome.policy, {**hyperparameters, **made}, self.results, retention, where)

    def table(self) -> Table:
        """The table a person reads at the end of a run."""
        return results_table(self.results, self.evaluator.texts | {"test": self.test_windows})

    def summary(self) -> str:
        """The line below it."""
        made, own = len(self.outcome.samples), len(self.samples)
        of_them = "" if made == own else f", {own} of them at sparsity {self.settings.target:g}"
        return f"{made} evaluations in {self.outcome.seconds:.0f} s{of_them}; files in {self.run.path}"

    def next_steps(self) -> list[str]:
        """What can be done with the model, as commands and a line of Python; nothing if none was written."""
        if self.results.saved is None or self.failure is not None:
            return []
        model, text = self.run.path / "model", self.about.get("test_text", "python-docs")
        return [
            f"measure it:  ffprune perplexity {model} --text {text} --split test",
            f"time it:     ffprune latency {model}",
            f"serve it:    ffprune export-gguf {model} {self.run.path / 'model.gguf'}",
            f'load it:     model = ffprune_env.load_pruned("{model}")',
        ]

    def _measure(self, policies: Mapping[str, Allocation]) -> None:
        self.policies |= policies
        batch_size = self.evaluator.batch_size
        self.results = measure_policies(self.evaluator, policies, self.test_windows, batch_size, self.results)
        self._keep()

    def _keep(self) -> None:
        """Writes ``best.json``."""
        texts = {**self.evaluator.texts, "test": self.test_windows}
        about = {
            "target_sparsity": self.settings.target,
            **self.about,
            "seq_len": self.evaluator.windows.shape[1],
            "test_seq_len": self.test_windows.shape[1],
            "windows": {purpose: len(windows) for purpose, windows in texts.items()},
            "evaluations": len(self.outcome.samples),
            "evaluations_for_target": len(self.samples),
            "seconds": self.outcome.seconds,
            "search_cost_windows": self.outcome.windows,
        }
        if self.answer.added is not None:
            start = {"start": self.outcome.start, "percent": self.answer.added.percent}
            about["added_to_start"] = asdict(self.answer.added) | start
        policies = best_policy(self.evaluator, self.results, self.answer.scores, self.answer.allocation)
        self.run.write_json("best.json", about | policies)
