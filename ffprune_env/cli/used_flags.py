"""Flags that somebody gave and that nothing would look at are refused: the result would not be what was asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields

from ffprune_env.budget.budget import TIMES
from ffprune_env.budget.sparsity_range import SparsityRange
from ffprune_env.cli.budget_flags import BudgetFlags
from ffprune_env.cli.limit_flags import LimitFlags
from ffprune_env.cli.recovery_flags import RecoverFlags, RecoveryFlags
from ffprune_env.evaluators.objectives.reward import RewardMix
from ffprune_env.evaluators.settings import CalibrationSettings
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.names import NOT_IMPROVED

# What is told to a policy that is trained, and to who looks on meanwhile.
_TRAINING = (
    "alpha_start", "k", "t0", "ramp_sparsity", "ramp_windows", "learning_rate", "rollout", "n_epochs", "clip_range",
    "normalize_advantage", "log_std_init", "finalists", "fresh_windows", "pool_windows", "patience", "watch_windows",
    "eval_every", "workers", "ray_address",
)  # fmt: skip
# Of the schedule that raises something.
_RAMPS = ("alpha_start", "k", "t0")
_RE_FITTING = ("ridge", "ridge_scale", "factor_storage", "openings")


@dataclass(frozen=True)
class UsedBy:
    """Flags that something looks at, or nobody.

    Attributes:
        names: of the settings that the flags are.
        used: whether anything looks at them.
        advice: why nothing does, and what to do, to follow "nothing looks at --x: ".
    """

    names: Collection[str]
    used: bool
    advice: str


def require_used(asked: Collection[str], flags: Iterable[UsedBy]) -> None:
    """Raises ValueError for flags that somebody gave in vain.

    Args:
        asked: names of the settings that the command line gives; what presets and configs say is no wish.
        flags: what looks at them.
    """
    for group in flags:
        in_vain = [f"--{name.replace('_', '-')}" for name in group.names if name in asked]
        if in_vain and not group.used:
            raise ValueError(f"nothing looks at {' '.join(in_vain)}: {group.advice}")


def by_search(search: SearchSettings, calibration: CalibrationSettings) -> Iterator[UsedBy]:
    """What a search and what comes before and after it look at.

    Args:
        search: how candidates are found.
        calibration: how the model is re-fitted.
    """
    # Who asks for no evaluations knows that there is no search.
    searched = search.total > 0 or search.evaluations is not None
    yield UsedBy(_TRAINING, searched, f"from --init {search.init} a search is made with --evaluations alone: add that")
    yield UsedBy(_RAMPS, search.ramp_sparsity or search.ramp_windows, "neither sparsity nor windows are raised")
    drawn = "windows are not drawn anew: leave out --no-fresh-windows"
    yield UsedBy(("pool_windows",), search.fresh_windows, drawn)
    clipped = "of one pass over a rollout nothing is clipped: add --n-epochs"
    yield UsedBy(("clip_range",), search.n_epochs > 1, clipped)
    one = len(search.targets) == 1 and not isinstance(search.sparsity, SparsityRange)
    yield UsedBy(("finalists",), one, "of several sparsities a function is chosen, and no sample")
    improved = search.init not in NOT_IMPROVED
    yield UsedBy(("init_steps",), improved, f"--init {search.init} is taken as it is; fisher-iterated is improved")
    fitted = calibration.calibration != "none"
    yield UsedBy(_RE_FITTING, fitted, "nothing is re-fitted with --calibration none")
    yield from by_questions(False, search.rewarded)


def by_questions(zero_shot: bool, rewarded: RewardMix) -> Iterator[UsedBy]:
    """What is looked at where questions are asked.

    Args:
        zero_shot: whether final models are asked any.
        rewarded: what a search is rewarded with.
    """
    yield UsedBy(("zero_shot_seeds", "limit", "held_out"), zero_shot, "no questions are asked: add --zero-shot")
    asks = zero_shot or any(term.kind == "tasks" for term in rewarded.terms)
    yield UsedBy(("data_dir",), asks, "no questions are asked, neither as a reward (--reward tasks) nor at the end")


def by_recovery(flags: RecoverFlags) -> UsedBy:
    """What a recovery at the end of a run looks at."""
    return UsedBy([field.name for field in fields(RecoveryFlags)], flags.recover, "it says how to train: add --recover")


def by_limit(flags: LimitFlags) -> UsedBy:
    """What is looked at where a limit is to be met."""
    return UsedBy(("limit_windows",), flags.limit is not None, "it is for --max-loss, --max-ppl and --min-reward")


def by_timing(flags: BudgetFlags) -> UsedBy:
    """What is looked at where a budget is a time."""
    timed = flags.budget is not None and flags.budget.measure in TIMES
    names = ("clock", "budget_server", "vllm_python")
    return UsedBy(names, timed, f"it is for a --budget of {', '.join(sorted(TIMES))}")
