"""SearchSettings: what a search by PPO is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ffprune_env.budget.mapping import MappingName, says_rates
from ffprune_env.budget.sparsity_range import SparsityRange
from ffprune_env.evaluators.objectives.settings import RewardSettings
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.search.saved_policy import MEANING
from ffprune_env.search.schedule import ProgressiveSchedule
from ffprune_env.search.starts.names import EQUAL, FFN_ONLY, FISHER_ITERATED, FROM_CURVES, NAMES, NO_CURVES
from ffprune_env.search.target_settings import TargetSettings
from ffprune_env.texts.window_settings import WindowSettings

Network = Literal["knots", "mlp"]

# Rate = 0.5 / √evaluations. n updates in random directions move the mean by about √n times the rate: a short search
# still gets somewhere, a long one still settles. Found on invented models of 24 layers (docs/presets.md).
_RATE_OF_ONE = 0.5
_EVALUATIONS = 96  # for every sparsity
_ROUNDING = 1e-9
_LEAST_ROOM = 0.02  # of rates, between what is kept in the mean and the lowest

#: How far the lowest rate is below what is kept in the mean, where nobody says it. Where only the order of scores
#: counts, most units end at the lowest rate, and what it is decides more than their order (docs/paper.md).
ROOM = 0.1


@dataclass(frozen=True)
class SearchSettings(WindowSettings, RewardSettings, TargetSettings):
    """Settings of a search by PPO; the fields are flags of ``train/ppo.py``, with their help."""

    mapping: MappingName = "waterfill"
    """scores to rates: waterfill (magnitudes count), paper (Algorithm 1 as printed: only their order counts) or greedy
    (the same, without its ties and its rounding)"""
    a_min: float | None = 0.2
    """lowest retention rate of a unit, and with --mapping paper and greedy that of nearly all that lose anything; None
    takes 0.1 less than what is kept of all"""
    a_max: float = 1.0
    """highest retention rate of a unit"""

    alpha_start: float = 0.5
    """where the schedule of sparsity and samples starts, as a fraction of its end"""
    k: float = 0.01
    """steepness of the schedule, for 1000 evaluations; rescaled to --evaluations"""
    t0: float = 500.0
    """middle of the schedule, for 1000 evaluations; rescaled to --evaluations"""
    ramp_sparsity: bool = False
    """let the schedule raise the sparsity, as in the paper; otherwise it is --sparsity from the start"""
    ramp_windows: bool = True
    """let the schedule raise the number of windows; otherwise it is --search-windows from the start"""

    network: Network = "knots"
    """what the policy's mean is of σ: knots (what the start knows, moved by an offset and a slope that are learned; one
    deviation for all units) or mlp (the paper's, 256 and 128 wide, a deviation for each; it starts from nothing or a
    run)"""
    learning_rate: float | None = None
    """of Adam: about what an update moves the mean action of every unit; None falls with the root of --evaluations"""
    rollout: int = 8
    """evaluations per policy update"""
    n_epochs: int = 1
    """passes over them per update"""
    clip_range: float = 0.2
    """PPO's clipping of the probability ratio"""
    normalize_advantage: bool = True
    """scale the advantages of an update to a mean of 0 and a deviation of 1, whatever the size of the rewards"""
    init: str = "fisher-iterated"
    """where the policy's mean starts: fisher (from damage curves, a few backward passes), fisher-iterated (the same,
    improved step by step), ffn-only, none (equal scores, as in the paper), or runs/<other>, the policy of another run.
    With --mapping paper or greedy it is none unless it is a run"""
    init_steps: int | None = None
    """steps on the pruned model that the start is improved by, a few backward passes each: of fisher-iterated at least
    2, by default 8, fewer where a budget ends; from runs/<other> by default 3, after a look at the dense model as for
    fisher, and 0 takes its policy as it is"""
    log_std_init: float = -1.9
    """log standard deviation of the actions at the start, which is learned"""
    action_scale: float = 3.0
    """what actions are multiplied by to give scores"""
    action_bound: float = 1.0
    """what actions are clipped to, on either side of 0; in the paper they are any numbers"""
    seed: int = 0
    """of the policy and its exploration"""
    finalists: int = 0
    """best samples that are measured again at the final sparsity, beside ffn-only, the start and the policy's mean, all
    on windows that neither start nor search saw; the better half of them on twice as many, and so on up to
    --final-windows. The best of many samples is mostly lucky, and the fewer they are the more windows decide"""

    def require_allowed(self) -> None:
        """Raises ValueError, in the words of the command line, for what no model is needed to refuse."""
        for flag, value, least, most in (
            ("--evaluations", self.wanted or 2, 2, math.inf),
            ("--rollout", self.rollout, 2, math.inf),
            ("--n-epochs", self.n_epochs, 1, math.inf),
            ("--init-steps", self.init_steps, 2 if self.init == FISHER_ITERATED else 0, math.inf),
            ("--finalists", self.finalists, 0, math.inf),
            ("--final-windows", self.final_windows, 1, math.inf),
            ("--seed", self.seed, 0, 2**32 - 1),
            *(("--learning-rate", rate, 1e-12, 1e3) for rate in (self.learning_rate,) if rate is not None),
            ("--clip-range", self.clip_range, 1e-6, 1e3),
            ("--log-std-init", self.log_std_init, -20, 5),
            ("--action-scale", self.action_scale, 1e-6, 1e6),
            ("--action-bound", self.action_bound, 1e-6, 1e6),
        ):
            require_in_range(flag, value, least, most)
        if self.network == "mlp" and self.init in (FFN_ONLY, *FROM_CURVES):
            raise ValueError(
                f"--network mlp starts from nothing or a run: --init must be none or runs/<other>, got {self.init!r}"
            )
        self._require_sparsities()
        if 1 - self.target - self.lowest < _LEAST_ROOM:
            raise ValueError(
                f"--a-min {self.lowest:g} leaves a search nothing to choose at --sparsity {self.target:g}, where every "
                f"unit ends at it: give one of {replace(self, a_min=None).lowest:.2g} or less"
            )
        if not self.wanted and self.starts_equal:
            start = "--init none" if self.init == EQUAL else f"the start of --mapping {self.mapping}"
            raise ValueError(f"{start} knows nothing: it needs a search, --evaluations must be 2 or more")
        if self.draws and self.ramp_sparsity:
            raise ValueError(
                "--fresh-windows compares the candidates of a rollout with the start at one sparsity, which "
                "--ramp-sparsity changes: add --no-fresh-windows, or leave that out"
            )
        self.schedule()

    def _require_sparsities(self) -> None:
        """Raises ValueError for sparsities that no allocation meets; whole groups may allow a little less still."""
        if not self.targets or not all(0 < target < 1 for target in self.targets):
            got = " ".join(f"{target:g}" for target in self.targets) or "none"
            raise ValueError(f"--sparsity takes numbers between 0 and 1, got {got}; 0.2 removes 20 %")
        if not 0 <= self.lowest < self.a_max <= 1:
            raise ValueError(
                f"--a-min and --a-max are the least and the most that may stay of a unit, 0 ≤ a_min < a_max ≤ 1: got "
                f"{self.lowest:g} and {self.a_max:g}"
            )
        lowest, highest = self.targets[0], self.targets[-1]
        if highest > 1 - self.lowest + _ROUNDING:
            needed = f"--sparsity {highest:g} needs an --a-min of {1 - highest:.2g} or less"
            raise ValueError(f"{needed}, got {self.lowest:g}")
        if lowest < 1 - self.a_max - _ROUNDING:
            needed = f"--sparsity {lowest:g} needs an --a-max of {1 - lowest:.2g} or more"
            raise ValueError(f"{needed}, got {self.a_max:g}")

    @property
    def starts_equal(self) -> bool:
        """Whether the policy starts from equal scores: as told, or since their order alone can say no other start."""
        return self.init == EQUAL or (not says_rates(self.mapping) and self.init in NAMES)

    @property
    def needless(self) -> dict[str, Any]:
        """Settings of windows that nobody would look at, with the values that make them none."""
        of_search = {} if self.total else {"patience": None, "eval_every": 0}
        of_search |= {} if self.draws and self.total else {"fresh_windows": False}
        return of_search | ({"curve_windows": 0} if self.init in NO_CURVES else {})

    @property
    def draws(self) -> bool:
        """Whether windows are drawn anew; where only functions are rewarded there is nothing to draw."""
        return self.fresh_windows and self.rewarded.reads_data

    @property
    def windows_wanted(self) -> dict[str, int]:
        """As of :class:`WindowSettings`, less those that nobody would look at: others get them where text is short."""
        used = {field.name: getattr(self, field.name) for field in fields(WindowSettings)}
        return WindowSettings(**used | self.needless).windows_wanted

    @property
    def lowest(self) -> float:
        """The lowest retention rate: as told, or :data:`ROOM` below what is kept at the highest sparsity."""
        return max(0.0, 1 - self.target - ROOM) if self.a_min is None else self.a_min

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds on retention rates, as arguments."""
        return {"a_min": self.lowest, "a_max": self.a_max}

    def meaning(self) -> dict[str, Any]:
        """What the scores of a policy depend on: another search can start from it if these are the same."""
        return {name: getattr(self, name) for name in MEANING} | self.bounds

    @property
    def wanted(self) -> int:
        """Evaluations that were asked for, or what is worth while from this start."""
        if self.evaluations is not None:
            return self.evaluations
        # At σ = 0.2 and 0.3 no search found anything better than starts from damage curves (docs/search.md).
        return 0 if self.init in FROM_CURVES and says_rates(self.mapping) else _EVALUATIONS * len(self.targets)

    @property
    def rate_of_learning(self) -> float:
        """Adam's: what was asked for, or what a search of this length does best with."""
        return _RATE_OF_ONE / math.sqrt(max(1, self.total)) if self.learning_rate is None else self.learning_rate

    @property
    def per_update(self) -> int:
        """Evaluations per policy update, no more than there are in all."""
        return min(self.rollout, self.wanted or self.rollout)

    @property
    def total(self) -> int:
        """Evaluations of the search: whole rollouts; 0 makes none."""
        return self.per_update * math.ceil(self.wanted / self.per_update)

    @property
    def look_every(self) -> int:
        """Updates between two looks at the policy's mean, where patience asks for them."""
        return max(1, (self.patience or 1) // 4)

    def schedule(self) -> ProgressiveSchedule:
        """The curriculum of the search."""
        return ProgressiveSchedule(
            self.target,
            self.search_windows,
            max(1, self.total),
            alpha_start=self.alpha_start,
            k=self.k,
            t0=self.t0,
            min_sparsity=1 - self.a_max,
            ramp_sparsity=self.ramp_sparsity,
            ramp_samples=self.ramp_windows,
            targets=self.targets,
            turn=self.per_update,
            span=(self.sparsity.low, self.sparsity.high) if isinstance(self.sparsity, SparsityRange) else None,
        )
