"""What a search reports of one sparsity: the answer that it chose, and how it came to that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ffprune_env.env import measure_reward
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.ledger import Part
from ffprune_env.lm.cost import Cost
from ffprune_env.run.answer_report import AnswerReport
from ffprune_env.run.budget_report import BudgetReport
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.plots import learning_curve_plot, retention_plot
from ffprune_env.run.results import PolicyResult
from ffprune_env.run.tensorboard import log_final
from ffprune_env.search.run_search import Outcome
from ffprune_env.search.samples import share_at_bound
from ffprune_env.search.settings import SearchSettings
from ffprune_env.texts.plan_rows import windows_made


class Report(AnswerReport):
    """The report of an answer, and of the search that gave it.

    Args:
        run: the folder of this sparsity.
        evaluator: the model, its search text and its calibration.
        test_windows: int64 [n, seq_len].
        outcome: of the search.
        settings: of the search; its target is the sparsity.
        about: what ``best.json`` tells beside the figures, such as the names of the texts.
        spent: what ranking, start, search and finalists cost, and what of the calibration all answers share.
        dense: the dense model, if it was measured already, such as for another sparsity of the same run.
        budget: what was asked for, where that was no sparsity.
    """

    def __init__(
        self,
        run: RunFolder,
        evaluator: LMEvaluator,
        test_windows: torch.Tensor,
        outcome: Outcome,
        settings: SearchSettings,
        about: Mapping[str, Any],
        spent: Mapping[Part, Cost],
        dense: PolicyResult | None = None,
        budget: BudgetReport | None = None,
    ) -> None:
        self.outcome, self.settings = outcome, settings
        self.samples = outcome.samples_for(settings.target)
        answer = outcome.answers[settings.target]
        made: dict[str, Any] = {
            "evaluations": len(outcome.samples),
            "evaluations_for_target": len(self.samples),
            "seconds": outcome.seconds,
            "search_cost_windows": outcome.windows,
        }
        if outcome.samples:
            made["scores_at_bound"] = share_at_bound(outcome.samples, settings.action_scale * settings.action_bound)
        if answer.added is not None:
            made["added_to_start"] = answer.added.written(settings.rewarded)
        super().__init__(run, evaluator, test_windows, settings.target, answer, {**about, **made}, spent, dense, budget)

    def draw(self, hyperparameters: Mapping[str, Any]) -> None:
        """Leaves the plots, and the outcome in TensorBoard.

        Args:
            hyperparameters: every setting of the run.
        """
        settings, units = self.settings, self.evaluator.units
        if self.samples:
            rewards = {
                name: measure_reward(self.evaluator, policy.kept, settings.search_windows, settings.rewarded.kind)[0]
                for name, policy in self.pruned.items()
            }
            # Of a range every rollout has its own σ, and a lighter pruning looks better, if not beside the start.
            comparable = self.outcome.schedule.span is None or settings.draws
            curve = learning_curve_plot(self.samples, rewards, settings.reward, means=comparable)
            self.run.save_plot("learning_curve", curve)
        self.draw_retention()
        where = "final" if len(self.outcome.answers) == 1 else f"final_{self.run.path.name}"
        # Shorter and fewer than asked for, maybe.
        made = windows_made({**self.evaluator.texts, "test": self.test_windows}, self.evaluator.bos)
        retention = retention_plot(units, {name: policy.rates for name, policy in self.pruned.items()})
        log_final(self.outcome.policy, {**hyperparameters, **made}, self.results, retention, where)

    def summary(self) -> str:
        """The line below the table."""
        made, own = len(self.outcome.samples), len(self.samples)
        if not made:
            return f"no search, {self.outcome.answers[self.target].name} as it is; files in {self.run.path}"
        of_them = "" if made == own else f", {own} of them at sparsity {self.target:g}"
        return f"{made} evaluations in {self.outcome.seconds:.0f} s{of_them}; files in {self.run.path}"

    def next_steps(self) -> list[str]:
        """As for any answer, and how to get the model of another sparsity."""
        steps, knots = super().next_steps(), self.outcome.learned.knots
        if not steps or len(self.outcome.answers) > 1 or len(knots) == 1:
            return steps
        low, high = float(knots[0]), float(knots[-1])
        half_way = (self.target + (high if high > self.target else low)) / 2
        asked = f"ffprune allocate {self.run.path} --sparsity {half_way:.3g}"
        return [*steps, f"another σ:   {asked}  (from {low:g} to {high:g}, without another search)"]
