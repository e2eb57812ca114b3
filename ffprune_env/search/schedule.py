"""ProgressiveSchedule: one sigmoid makes the task harder and its measurement finer (Eqs. 3-5; docs/design.md, 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ffprune_env.budget.van_der_corput import van_der_corput

_PAPER_STEPS = 1000


@dataclass(frozen=True)
class ProgressiveSchedule:
    """The curriculum of a search: α(t), and from it the target sparsity and the amount of text.

    ``k`` and ``t0`` are given for a search of 1000 steps and rescaled to ``total_steps``, so the curve keeps its
    shape. α never reaches 1; what is reported must be measured again at ``final_sparsity``.

    Args:
        final_sparsity: S_final, the target sparsity at the end, in [0, 1).
        max_samples: N_max, windows of search text per measurement at the end, at least 1.
        total_steps: environment steps of the whole search, at least 1.
        alpha_start: α long before t0, in [0, 1]; 1 switches the curriculum off.
        k: steepness of the sigmoid, positive.
        t0: step at which α is half way.
        min_sparsity: σ_t is never below it; 1 - a_max where units may not stay whole.
        ramp_sparsity: False asks for ``final_sparsity`` from the start.
        ramp_samples: False measures on ``max_samples`` windows from the start.
        targets: final sparsities of a search for several, taken in turns, none above ``final_sparsity``; empty stands
            for that one alone.
        span: lowest and highest of all sparsities that are searched; every turn is of another of them, spread evenly.
        turn: steps that a target, σ_t and a number of windows are kept for: whole rollouts, so that the rewards that
            one update compares are of the same task.

    Raises:
        ValueError: an argument is out of its range.

    Source:
        arXiv 2511.18977, Eqs. 3-5.
    """

    final_sparsity: float
    max_samples: int
    total_steps: int
    alpha_start: float = 0.5
    k: float = 0.01
    t0: float = 500.0
    min_sparsity: float = 0.0
    ramp_sparsity: bool = True
    ramp_samples: bool = True
    targets: tuple[float, ...] = ()
    turn: int = 1
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, value, ok, allowed in (
            ("final_sparsity", self.final_sparsity, 0 <= self.final_sparsity < 1, "in [0, 1)"),
            ("max_samples", self.max_samples, self.max_samples >= 1, "at least 1"),
            ("total_steps", self.total_steps, self.total_steps >= 1, "at least 1"),
            ("alpha_start", self.alpha_start, 0 <= self.alpha_start <= 1, "in [0, 1]"),
            ("k", self.k, 0 < self.k < math.inf, "positive"),
            ("t0", self.t0, math.isfinite(self.t0), "finite"),
            ("turn", self.turn, self.turn >= 1, "at least 1"),
            ("targets", self.targets, all(0 <= x <= self.final_sparsity for x in self.targets), "up to final_sparsity"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {allowed}, got {value}")

    def alpha(self, t: float) -> float:
        """α(t) = α_start + (1 - α_start) / (1 + exp(k (t0 - t))) (Eq. 3)."""
        scale = _PAPER_STEPS / self.total_steps
        # Past 700 exp overflows; the sigmoid is 0 there to the last bit.
        exponent = min(self.k * (self.t0 - t * scale), 700.0)
        return self.alpha_start + (1 - self.alpha_start) / (1 + math.exp(exponent))

    def sparsity(self, t: float) -> float:
        """σ_t = S_final · α(t) (Eq. 4) at the step that the turn begins with, not below ``min_sparsity``."""
        final = self.target(t)
        if not self.ramp_sparsity:
            return final
        return max(final * self.alpha(self._begun(t)), min(self.min_sparsity, final))

    def target(self, t: float) -> float:
        """The sparsity that σ_t is on its way to."""
        if self.span is not None:
            low, high = self.span
            return low + (high - low) * van_der_corput(int(t) // self.turn + 1)
        return self.targets[int(t) // self.turn % len(self.targets)] if self.targets else self.final_sparsity

    def counts_for(self, t: float) -> float:
        """The target that a measurement at step t says most of: the nearest one."""
        at = self.target(t)
        return min(self.targets or (self.final_sparsity,), key=lambda target: abs(target - at))

    def samples(self, t: float) -> int:
        """n_t = max(1, round(N_max · α(t))) windows (Eq. 5), at the step t that the turn begins with."""
        return max(1, round(self.max_samples * self.alpha(self._begun(t)))) if self.ramp_samples else self.max_samples

    def _begun(self, t: float) -> float:
        """The step that the turn of step t began with; of turns of one step, t itself."""
        return t - t % self.turn if self.turn > 1 else t
