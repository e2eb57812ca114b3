"""What a search does not look at: said, or refused where somebody asked for it, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from ffprune_env.budget.mapping import says_rates
from ffprune_env.budget.sparsity_range import SparsityRange
from ffprune_env.evaluators.objectives.reward import RewardMix
from ffprune_env.evaluators.settings import CalibrationSettings
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.names import EQUAL, NOT_IMPROVED

logger = logging.getLogger(__name__)

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
    """Settings that something looks at, or nobody.

    Attributes:
        names: of the settings; those of the flags are the same.
        used: whether anything looks at them.
        advice: why nothing does, and what to do, to follow "nothing looks at --x: ".
    """

    names: Collection[str]
    used: bool
    advice: str


def require_used(asked: Collection[str], settings: Iterable[UsedBy]) -> None:
    """Refuses settings that somebody gave in vain: the result would not be what was asked for.

    Args:
        asked: names of the settings that somebody gave a value; what presets, configs and defaults say is no wish.
        settings: what looks at them.

    Raises:
        ValueError: nothing looks at one; the message calls it by its flag.
    """
    for group in settings:
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
    yield by_asking(search.rewarded)


def by_asking(rewarded: RewardMix, at_the_end: bool = False) -> UsedBy:
    """What is looked at where questions are asked.

    Args:
        rewarded: what a search is rewarded with.
        at_the_end: whether final models are asked any.
    """
    asks = at_the_end or any(term.kind == "tasks" for term in rewarded.terms)
    return UsedBy(("data_dir",), asks, "no questions are asked, neither as a reward (--reward tasks) nor at the end")


def require_heeded(settings: SearchSettings, asked: Collection[str]) -> None:
    """Says in one line which settings a search cannot heed, since only the order of its scores counts.

    Args:
        settings: of the search.
        asked: names of the settings that somebody gave a value; others have it from a preset, a config or a default.

    Raises:
        ValueError: somebody asked for one of those.
    """
    if says_rates(settings.mapping):
        return
    why = f"--mapping {settings.mapping} keeps the order of scores alone"
    other = settings.init if settings.starts_equal else None
    if "init" in asked and other not in (None, EQUAL):
        raise ValueError(
            f"{why}, which cannot say --init {other}: leave that out, say --init none or runs/<other>, or take "
            f"--mapping waterfill"
        )
    if "init_steps" in asked and settings.init_steps:
        raise ValueError(f"{why}, which no step improves: leave out --init-steps, or take --mapping waterfill")
    ignored = ["--init-steps", "--curve-windows"] if other is None else ["--init", "--init-steps", "--curve-windows"]
    ignored += [] if settings.fresh_windows else ["--pool-windows"]
    start = "the policy of another run is taken as it is" if other is None else "the search starts from equal scores"
    # That a default is not what it says is more than a note.
    level = logging.INFO if other in (None, EQUAL) else logging.WARNING
    logger.log(level, "%s: %s, and nobody looks at %s", why, start, ", ".join(ignored))
