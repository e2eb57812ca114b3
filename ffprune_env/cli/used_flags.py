"""Flags beside those of a search that somebody gave and that nothing would look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from ffprune_env.budget.budget import TIMES
from ffprune_env.cli.budget_flags import BudgetFlags
from ffprune_env.cli.limit_flags import LimitFlags
from ffprune_env.cli.recovery_flags import RecoverFlags, RecoveryFlags
from ffprune_env.evaluators.objectives.reward import RewardMix
from ffprune_env.search.unheeded import UsedBy, by_asking


def by_questions(zero_shot: bool, rewarded: RewardMix) -> Iterator[UsedBy]:
    """What is looked at where questions are asked.

    Args:
        zero_shot: whether final models are asked any.
        rewarded: what a search is rewarded with.
    """
    yield UsedBy(("zero_shot_seeds", "limit", "held_out"), zero_shot, "no questions are asked: add --zero-shot")
    yield by_asking(rewarded, zero_shot)


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
